"""The page itself: figures, texts and plotly's own bundle in one HTML file, which loads nothing."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from nld_train.printable import printable
from nld_train.training.metrics.jsonl import Content, Record
from nld_train.training.metrics.metric import human

_PARTS = files("nld_train.report_page")


def page_of(directory: Path, content: Content, figures: Sequence[Any], played: Mapping[str, Any], note: str) -> str:
    """The whole page.

    Args:
        directory: `run.dir`.
        content: of its `metrics.jsonl`.
        figures: as of `curves.figures_of`.
        played: as of `decoded.decoded_texts`; empty for none.
        note: why there is no decoded text; empty where there is, or none was asked for.

    Raises:
        ImportError: plotly is not installed.
    """
    from plotly.offline import get_plotlyjs

    records = content.records
    notes = [f"metrics.jsonl: {problem}" for problem in content.problems]
    return Template(_part("page.html")).substitute(
        title=html.escape(printable(directory.name or str(directory.resolve().name))),
        facts=_table(["", ""], _facts(directory, records)),
        results=_results(records),
        problems="".join(f'<p class="problem">{html.escape(printable(line))}</p>' for line in notes),
        note=f'<p class="problem">{html.escape(printable(note))}</p>' if note else "",
        undecoded="" if played or note else " hidden",
        style=_part("page.css"),
        data=_embedded({"figures": figures, "played": played or None}),
        plotly=get_plotlyjs(),
        script=_part("page.js"),
    )


def _part(name: str) -> str:
    return _PARTS.joinpath(name).read_text(encoding="utf-8")


def _embedded(value: Any) -> str:
    """JSON that cannot end the element of the page that it is in. Numbers of numpy, and NaN, are none of JSON."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _facts(directory: Path, records: Sequence[Record]) -> list[list[str]]:
    rows = [["run", str(directory)]]
    if records:
        last = records[-1]
        stages = dict.fromkeys(record["stage"] for record in records)
        rows += [
            ["stages", ", ".join(stages)],
            ["steps", f"{last['step']:,}"],
            ["tokens", human(last["tokens"])],
        ]
    return rows


def _results(records: Sequence[Record]) -> str:
    """The newest held-out losses, and the newest figures of every decode mode, as tables."""
    found = ""
    if validated := [record for record in records if "validation" in record]:
        value = validated[-1]["validation"]
        losses = [["AR", f"{value['ar_loss']:.4f}"]]
        losses += [[f"diffusion, t = {level}", f"{loss:.4f}"] for level, loss in value["diffusion_loss"].items()]
        found += _table(["held-out loss", f"nats per token, step {validated[-1]['step']:,}"], losses)
    if decoded := [record for record in records if "decoding" in record]:
        modes = decoded[-1]["decoding"]["modes"]
        rows = [
            [
                mode,
                f"{figures['tokens_per_forward']:.2f}",
                *(f"{figures[key]:.1%}" if key in figures else "-" for key in ("agreement", "exact")),
            ]
            for mode, figures in modes.items()
        ]
        heads = [f"mode, step {decoded[-1]['step']:,}", "tokens per forward", "same as AR", "exact answers"]
        found += _table(heads, rows)
    return found


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}>{html.escape(printable(cell))}</{tag}>" for cell in row)

    head = f"<thead><tr>{cells('th', heads)}</tr></thead>" if any(heads) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"
