"""Writes the tables of `docs/performance.md` from the results: figures are never copied by hand.

    python -m benchmarks.tables            write them
    python -m benchmarks.tables --check    only say whether they are what the results say

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. What has no result is "not measured".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS
from nld_train.files import write_atomically

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
NOT_MEASURED = "not measured"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# A result, as `record.keep` wrote it.
Result = dict[str, Any]
Cells = tuple[str, ...]


def main(arguments: list[str] | None = None) -> int:
    """The command line; with --check returns 1 where the page differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page")
    options = parser.parse_args(arguments)
    before = options.page.read_text()
    after = with_tables(before, options.results)
    if options.check:
        print("as the results say" if before == after else f"{options.page}: differs; run python -m benchmarks.tables")
        return int(before != after)
    write_atomically(options.page, after)
    return 0


def with_tables(page: str, results: Path) -> str:
    """The page with every table made anew from the results."""
    return _TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]](results)}{found[3]}", page)


def load(results: Path, name: str, on_gpu: bool = False) -> Result | None:
    """A result, or None where there is none, or none of a GPU although one is wanted."""
    try:
        result: Result = json.loads((results / f"{name}.json").read_text())
    except FileNotFoundError:
        return None
    return None if on_gpu and "gpu" not in result["machine"] else result


def _markdown(head: Cells, rows: Iterable[Cells]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _where(result: Result) -> str:
    machine = result["machine"]
    return str(machine.get("gpu", f"{machine['cores']} CPU cores"))


def _blank(first: str, columns: int) -> Cells:
    return (first, NOT_MEASURED, *[""] * (columns - 2))


def step(results: Path) -> str:
    """Question 1: joint over AR, per shape."""
    head = ("shape", "on", "layers", "AR, tokens/s", "joint, tokens/s", "joint over AR", "limit", "of limit", "target")
    rows = []
    for title, name, on_gpu in (("quickstart", "step", False), *((s, f"step_{s}", True) for s in ("3b", "8b", "14b"))):
        result = load(results, name, on_gpu)
        if result is None:
            rows.append(_blank(title, len(head)))
            continue
        found = result["figures"]
        speeds = (f"{found['tokens'] / found['seconds'][kind]:,.0f}" for kind in ("ar", "joint"))
        ratios = (f"{found[key]:.2f}" for key in ("time_ratio", "limit", "of_limit"))
        target = f"{found['target']:.2f}" if on_gpu else ""
        rows.append((title, _where(result), str(found["layers"]), *speeds, *ratios, target))
    return _markdown(head, rows)


def memory(results: Path) -> str:
    """Question 1: peak memory of both steps."""
    head = ("shape", "AR, GiB", "joint, GiB", "joint over AR")
    rows = []
    for shape in ("3b", "8b", "14b"):
        result = load(results, f"step_{shape}", on_gpu=True)
        if result is None:
            rows.append(_blank(shape, len(head)))
            continue
        ar, joint = (result["figures"]["peak_bytes"][kind] for kind in ("ar", "joint"))
        rows.append((shape, f"{ar / 2**30:.1f}", f"{joint / 2**30:.1f}", f"{joint / ar:.2f}"))
    return _markdown(head, rows)


def _both(results: Path, name: str, rows_of: Callable[[Result], Iterable[Cells]], head: Cells) -> str:
    """A table of what can be had on a CPU in small, and on a GPU."""
    rows: list[Cells] = []
    for title, result in (("GPU", load(results, f"{name}_gpu", on_gpu=True)), ("CPU", load(results, name))):
        rows += [_blank(title, len(head))] if result is None else rows_of(result)
    return _markdown(head, rows)


def baseline(results: Path) -> str:
    """Question 2: ours over the straightforward design."""
    head = ("on", "model", "tokens/s", "target", "head and loss, memory", "target")

    def rows_of(result: Result) -> Iterable[Cells]:
        found = result["figures"]
        model = f"{found['model']}, {found['layers']} layers"
        speed, share = f"{found['speed_ratio']:.2f} times", f"{found['head_memory_ratio']:.2f}"
        yield _where(result), model, speed, f"{found['speed_target']}", share, f"{found['head_memory_target']}"

    return _both(results, "baseline", rows_of, head)


def attention(results: Path) -> str:
    """Question 3: joint over causal attention."""
    head = ("on", "samples", "backend", "milliseconds", "over causal", "limit", "of limit", "target")

    def rows_of(result: Result) -> Iterable[Cells]:
        for case, found in result["figures"]["cases"].items():
            for name, row in found["rows"].items():
                target = "" if name == "causal" else f"{result['figures']['target']}"
                ratios = (f"{row['ratio']:.2f}", f"{found['limit']:.2f}", f"{row['of_limit']:.2f}")
                ratios = ("", "", "") if name == "causal" else ratios
                samples = f"{case}, {result['figures']['length']} tokens"
                yield _where(result), samples, name, f"{1e3 * row['seconds']:.1f}", *ratios, target

    return _both(results, "attention", rows_of, head)


def head(results: Path) -> str:
    """Head and loss by way."""
    columns = ("on", "rows x vocabulary", "way", "milliseconds", "extra memory, GiB", "error of loss", "of gradients")

    def rows_of(result: Result) -> Iterable[Cells]:
        found = result["figures"]
        size = f"{found['supervised_rows']} x {found['vocabulary']}"
        for name, row in found["rows"].items():
            errors = row["errors"]
            gradients = max(errors["hidden_gradient"], errors["weight_gradient"])
            cells = (f"{1e3 * row['seconds']:.1f}", f"{row['extra_bytes'] / 2**30:.2f}")
            yield _where(result), size, name, *cells, f"{errors['loss']:.0e}", f"{gradients:.0e}"
        for name, reason in found["missing"].items():
            yield _where(result), size, name, reason, "", "", ""

    return _both(results, "head", rows_of, columns)


def mfu(results: Path) -> str:
    """Question 4."""
    columns = ("layers", "AR step", "joint step", "target")
    result = load(results, "mfu", on_gpu=True)
    rows = []
    for kind in ("local", "transformer_engine"):
        found: dict[str, Any] = (
            {"missing": NOT_MEASURED} if result is None else result["figures"]["kinds"].get(kind, {})
        )
        shares = found.get("utilisation")
        cells = (found.get("missing", NOT_MEASURED), "") if shares is None else map("{:.1%}".format, shares.values())
        rows.append((kind, *cells, "above 52 %"))
    return _markdown(columns, rows)


def scaling(results: Path) -> str:
    """Question 5."""
    columns = ("processes", "seconds per step", "limit", "of limit")
    result = load(results, "scaling")
    rows = [_blank("1, 2, 4", len(columns))]
    if result is not None:
        found = result["figures"]["processes"].items()
        rows = [(n, f"{r['seconds']:.3f}", f"{r['limit']:.3f}", f"{r['of_limit']:.2f}") for n, r in found]
    return _markdown(columns, rows)


def data(results: Path) -> str:
    """Question 6."""
    columns = ("figure", "measured", "beside", "ratio", "target")
    result = load(results, "data")
    if result is None:
        return _markdown(columns, [_blank(each, len(columns)) for each in ("preparation", "loader")])
    prepared, loader = result["figures"]["preparation"], result["figures"]["loader"]
    ours, theirs = (row["tokens_per_second_processor"] for row in prepared["rows"].values())
    ratio = f"{prepared['ratios']['processor']:.2f}"
    milliseconds = (f"{1e3 * loader['load_seconds']:.1f} ms", f"step of {1e3 * loader['step_seconds']:.0f} ms")
    return _markdown(
        columns,
        [
            ("`nld-data prepare`, tokens/s per core", f"{ours:,.0f}", f"`datasets.map` {theirs:,.0f}", ratio, ""),
            ("samples of a joint step", *milliseconds, f"{loader['share']:.2%}", "below 1 %"),
        ],
    )


def start(results: Path) -> str:
    """Question 7."""
    columns = ("command", "seconds", "limit", "of limit")
    result = load(results, "start")
    rows = [_blank("all", len(columns))]
    if result is not None:
        found = result["figures"].items()
        rows = [(f"`{n}`", f"{r['seconds']:.2f}", f"{r['limit']:.1f}", f"{r['of_limit']:.2f}") for n, r in found]
    return _markdown(columns, rows)


def runs(results: Path) -> str:
    """Which results there are, of which revision and where."""
    columns = ("result", "on", "revision", "command")
    rows = []
    for path in sorted(results.glob("*.json")):
        result: Result = json.loads(path.read_text())
        revision = str(result.get("git_revision"))
        rows.append((f"`{path.name}`", _where(result), revision[:12], f"`{result['command']}`"))
    return _markdown(columns, rows)


TABLES: dict[str, Callable[[Path], str]] = {
    each.__name__: each for each in (step, memory, baseline, attention, head, mfu, scaling, data, start, runs)
}

if __name__ == "__main__":
    sys.exit(main())
