"""The metric `decoding`: how decoding of held-out prompts during training is printed, plotted and summarised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.metric import INDENT, Curve, HeatMap, Metric, Panel, cost_text, flat, human

# Characters of a decoded text.
_TEXT_SHOWN = 60
# Figures of a mode that `nld-status` shows; the last one only where questions with one right answer are decoded.
_STATUS = ("tokens_per_forward", "agreement", "exact")
# Entries of a sample that no mode has decoded.
_GIVEN = ("prompt", "answer")


class DecodingMetric(Metric):
    """Figures by decode mode, agreement between the modes, and texts of the first prompts."""

    def lines(self, value: Record) -> list[str]:
        """See `Metric.lines`: one per mode, one of the agreements, and the beginning of each different text.

        The first line also has the share of the time that decoding takes.
        """
        modes = value["modes"]
        width = max(len(mode) for mode in modes)
        lines = [f"{INDENT}{mode:<{width}}  {_figures_text(figures)}" for mode, figures in modes.items()]
        lines[0] += f"  {cost_text(value, self.name)}"
        pairs = [f"{pair} {share:.0%}" for pair, share in value["agreements"].items() if "ar" not in pair.split("/")]
        if pairs:
            lines.append(f"{INDENT}agreement  {'  '.join(pairs)}")
        return lines + [f"{INDENT}{line}" for line in _text_lines(value["samples"])]

    def panels(self, records: Sequence[Record]) -> list[Panel]:
        """See `Metric.panels`: figures over tokens, and the last acceptance by position in the block."""
        exact = self._figure_panel(records, "exact", "share of questions", "Decoding: exact answers")
        return [
            *([exact] if exact.curves else []),
            self._figure_panel(records, "tokens_per_forward", "tokens per forward", "Decoding: tokens per forward"),
            self._figure_panel(records, "agreement", "share of tokens", "Decoding: tokens equal to AR's"),
            self._figure_panel(records, "tokens_per_second", "tokens per second", "Decoding: speed"),
            self._acceptance_panel(records),
        ]

    def _figure_panel(self, records: Sequence[Record], figure: str, label: str, title: str) -> Panel:
        """One figure of each mode that has it; a continued run may have decoded other modes before."""
        points: dict[str, list[tuple[float, float]]] = {}
        for record in records:
            for mode, figures in record[self.name]["modes"].items():
                if figure in figures:
                    points.setdefault(mode, []).append((record["tokens"], figures[figure]))
        curves = [Curve(mode, found, {"marker": "."}) for mode, found in points.items()]
        return Panel(label, curves, title=title)

    def _acceptance_panel(self, records: Sequence[Record]) -> Panel:
        last = {mode: figures for record in records for mode, figures in record[self.name]["modes"].items()}
        curves = [
            Curve(mode, [(int(position), rate) for position, rate in rates.items()], {"marker": "."})
            for mode, rates in _acceptance_rates(last).items()
        ]
        title = "Acceptance rate of drafts, at the last decoding"
        return Panel("share of drafts", curves, x_label="position in the block", title=title)

    def heat_maps(self, records: Sequence[Record]) -> list[HeatMap]:
        """See `Metric.heat_maps`: for each mode that drafts, acceptance by position in the block over tokens."""
        columns: dict[str, list[tuple[float, dict[int, float]]]] = {}
        for record in records:
            for mode, rates in _acceptance_rates(record[self.name]["modes"]).items():
                found = {int(position): rate for position, rate in rates.items()}
                columns.setdefault(mode, []).append((record["tokens"], found))
        return [
            HeatMap(f"Acceptance rate of drafts: {mode}", "position in the block", "share of drafts", found)
            for mode, found in columns.items()
            if len(found) > 1  # one measurement is in the panel of the last decoding
        ]

    def summary(self, records: Sequence[Record]) -> Record:
        """See `Metric.summary`: by mode, the figures of its first and of its last decoding, each with its step."""
        ends: Record = {}
        for record in records:
            for mode, figures in record[self.name]["modes"].items():
                figures = {"step": record["step"], **figures}
                ends.setdefault(mode, {"first": figures})["last"] = figures
        return {self.name: ends or None}

    def progress(self, stage: Record) -> list[str]:
        """See `Metric.progress`: a line per mode from its first to its last decoding.

        The tokens per forward of AR never change; its line has the held-out loss, where there is one.
        """
        return [
            f"{mode}: {_progress_text(mode, ends, stage['validations'])}"
            for mode, ends in (stage[self.name] or {}).items()
        ]

    def wandb_values(self, value: Record) -> Record:
        """See `Metric.wandb_values`: numbers, tables of samples and of figures, and a plot of acceptance."""
        modes = value["modes"]
        values = flat({self.name: {key: item for key, item in value.items() if key != "samples"}})
        values[f"{self.name}/figures"] = _table([{"mode": mode, **_numbers(modes[mode])} for mode in modes])
        if value["samples"]:
            values[f"{self.name}/samples"] = _table(value["samples"])
        if rates := _acceptance_rates(modes):
            values[f"{self.name}/acceptance"] = _acceptance_plot(rates)
        return values

    def status(self, record: Record) -> Record:
        """See `Metric.status`: tokens per forward, agreement and exact answers by mode."""
        modes = record[self.name]["modes"].items()
        shown = {mode: {key: figures[key] for key in _STATUS if key in figures} for mode, figures in modes}
        return {"step": record["step"], "modes": shown}

    def status_text(self, status: Record) -> tuple[str, str]:
        """See `Metric.status_text`."""
        texts = [
            f"{mode} {figures['tokens_per_forward']:.2f}" + (f" ({figures['exact']:.0%})" if "exact" in figures else "")
            for mode, figures in status["modes"].items()
        ]
        exact = any("exact" in figures for figures in status["modes"].values())
        return "tokens per forward" + (" (exact)" if exact else ""), ", ".join(texts)


def _figures_text(figures: Record) -> str:
    """The figures of a mode; its acceptance rate for a few positions only."""
    parts = [
        *([f"exact {figures['exact']:.0%}"] if "exact" in figures else []),
        f"{figures['tokens_per_forward']:.2f} tokens/forward",
        f"{human(figures['tokens_per_second'])} tok/s",
        *([f"agreement with ar {figures['agreement']:.0%}"] if "agreement" in figures else []),
    ]
    if rates := figures.get("acceptance"):
        parts.append(f"accepted length {figures['accepted_length']:.2f}")
        shown = [position for position in rates if _is_shown(int(position), len(rates))]
        parts.append("by position " + " ".join(f"{position}:{rates[position]:.0%}" for position in shown))
    return "  ".join(parts)


def _is_shown(position: int, last: int) -> bool:
    """1, 2, 4, 8 and so on, and the last: acceptance falls fast at first and slowly later."""
    return position == last or position & (position - 1) == 0


def _text_lines(samples: list[dict[str, str]]) -> Iterator[str]:
    """The beginning of each mode's continuation of the first prompt; modes with the same text share a line."""
    if not samples:
        return
    by_text: dict[str, list[str]] = {}
    for mode, text in samples[0].items():
        if mode not in _GIVEN:
            by_text.setdefault(text, []).append(mode)
    for text, modes in by_text.items():
        cut = text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]}..."
        # Quoted, so that line breaks and control characters are visible.
        yield f"{', '.join(modes)}: {cut!r}"


def _progress_text(mode: str, ends: Record, validations: list[Record]) -> str:
    speed = f"{_change(ends, 'tokens_per_forward', '.2f')} tokens per forward"
    if all("exact" in figures for figures in ends.values()):
        speed = f"exact {_change(ends, 'exact', '.1%')}, {speed}"
    if not all("agreement" in figures for figures in ends.values()):
        return speed
    if mode != "ar":
        return f"{speed}, agreement {_change(ends, 'agreement', '.2f')}"
    losses = {"first": validations[0], "last": validations[-1]} if validations else None
    return f"{speed}, held-out loss {_change(losses, 'ar_loss', '.4f')}" if losses else speed


def _change(ends: Record, name: str, form: str) -> str:
    """`first -> last`; one figure where there was one measurement."""
    first, last = ends["first"], ends["last"]
    before = "" if first["step"] == last["step"] else f"{first[name]:{form}} -> "
    return f"{before}{last[name]:{form}}"


def _acceptance_rates(modes: dict[str, Record]) -> dict[str, dict[str, float]]:
    """For each mode that drafts, the acceptance rate by position in the block, from 1."""
    return {mode: figures["acceptance"] for mode, figures in modes.items() if figures.get("acceptance")}


def _numbers(figures: Record) -> Record:
    """The figures of a mode without those by position."""
    return {name: value for name, value in figures.items() if not isinstance(value, dict)}


def _acceptance_plot(rates: dict[str, dict[str, float]]) -> Any:
    """A line per mode over positions in the block."""
    from wandb import plot

    return plot.line_series(
        xs=[[int(position) for position in by_position] for by_position in rates.values()],
        ys=[list(by_position.values()) for by_position in rates.values()],
        keys=list(rates),
        title="acceptance rate of drafts, by position in the block",
        xname="position",
    )


def _table(rows: list[Record]) -> Any:
    """Columns are named by the first row."""
    import wandb

    return wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
