"""The page docs/paper.md, from the declarations and the results: no figure in it is copied by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.paper.claim import Claim, PaperTable
from benchmarks.paper.claims import TABLES
from benchmarks.paper.design import DECIDED, Design
from benchmarks.paper.rows import ROWS
from benchmarks.results_table import NOT_MEASURED, markdown

Result = dict[str, Any]
_UNITS = {"points": "points", "nats": "nats", "percent": "%"}

_BEGINNING = """\
# The paper in small

The claims of the paper's ablations (arXiv 2607.05722), tested on a byte model of a million weights that learns
questions with one right answer ([tasks](tasks.md)), with standard errors over seeds. `python -m benchmarks.paper`
trains and measures everything and writes this page; nothing on it is written by hand. A small model can contradict the
paper at 8B without either being wrong: the page says what holds at this size.

```text
python -m benchmarks.paper                           # everything, a step per core; started again, it goes on
python -m benchmarks.paper --tables table_1 --jobs 1 # one table
python -m benchmarks.paper --report                  # writes the page from what is finished
python -m benchmarks.paper model.hidden_size=512 model.intermediate_size=1536 --device cuda --tokens 10  # on a GPU
```

Not measured on a GPU.
"""


def page(design: Design, result: Result | None) -> str:
    """The page.

    Args:
        design: of the experiments.
        result: content of `paper.json`; None before the first run.
    """
    parts = [_BEGINNING, _made_by(result), _summary(result), _design(design)]
    parts += [_table(table, result) for table in TABLES]
    return "\n".join([*parts, _at_full_size()])


def _made_by(result: Result | None) -> str:
    if result is None:
        return "Nothing has been measured yet.\n"
    return f"Made by `{result['command']}` {_origin(result)}.\n"


def _origin(result: Result) -> str:
    """Revision and machine of a result, or of one of its tables."""
    machine = result["machine"]
    where = machine.get("gpu", f"{machine['cores']} cores of {machine['processor']}")
    return f"at revision `{result['git_revision']}` on {where}"


def _summary(result: Result | None) -> str:
    if result is None:
        return ""
    measured = [claim for claim in result["claims"] if claim["ours"] is not None]
    count = {name: sum(claim["verdict"] == name for claim in measured) for name in ("same", "opposite", "undecided")}
    begun = sum(claim["seeds"] < claim["seeds_of_design"] for claim in measured)
    waiting = f", {begun} of them because seeds are missing" if begun else ""
    return (
        f"Of {len(result['claims'])} claims {len(measured)} are measured: {count['same']} point in the paper's "
        f"direction, {count['opposite']} in the opposite one, and {count['undecided']} are not decided{waiting}.\n"
    )


def _design(design: Design) -> str:
    tokens = design.tokens
    rows = markdown(
        ("row", "", "settings", "from"),
        [
            (
                f"`{row.name}`",
                row.what,
                " ".join(f"`{setting}`" for setting in row.settings) or "-",
                "AR stage" if row.start == "ar" else "base",
            )
            for row in ROWS.values()
        ],
    )
    return f"""\
## Design

Written before the runs, and made of the same declarations as they are (`benchmarks/paper/`).

- **Training.** `experiment=ablation_small`. A base is trained with the AR loss on text ({tokens["base"]:,} tokens); the
  AR stage with the AR loss on answers ({tokens["ar"]:,} tokens); then a row on answers ({tokens["joint"]:,} tokens). A
  row that starts from the base has the AR stage's tokens as well, so that all rows see
  {design.tokens_of("ar", "joint"):,} tokens of questions. Base and AR stage of a seed are trained once, for all rows.
- **Size.** By two pilots of one seed. With 300,000 tokens in the AR stage and 600,000 in a row, diffusion answered
  1.9 % in `block_wise` and 25 % in `joint`; with 500,000 and 1,500,000, as here, 29 and 79 %, and AR 98 % in
  `joint`. AR is near its ceiling where diffusion is not, so that held-out losses are compared as well. Nothing else
  was tried.
- **Stopping.** After the tokens above. No run is stopped earlier, repeated or left out; one that fails is reported.
- **Seeds.** {len(design.seeds)} ({", ".join(map(str, design.seeds))}): {_seeds(design)}. A seed fixes the
  starting weights, the order of the data and the noise, and is shared by the rows that are compared.
- **Questions.** {design.held_out} held-out ones of each kind, the same for all rows, through lm-evaluation-harness
  (`nld-eval`), greedy, at most {design.max_new_tokens} new tokens. Diffusion commits by confidence at threshold 0.9 in
  blocks of the length of the training. A block begins with the AR prediction; where rows without an AR loss are
  compared, with a mask like the others (`--block-start masks`), in all rows.
- **Held-out losses.** In nats per token of the answers, under fixed noise; of diffusion the mean over four noise
  levels.
- **Test.** Differences are paired by seed. *same*: their mean is on the paper's side by more than {DECIDED:g} standard
  errors; *opposite*: on the other side; else *undecided*, and so as long as seeds are missing. Claims are not corrected
  for their number.

{rows}"""


def _seeds(design: Design) -> str:
    """Which tables take how many."""
    tables: dict[int, list[str]] = {}
    for table in TABLES:
        tables.setdefault(len(table.seeds_of(design)), []).append(table.title.partition(":")[0])
    return "; ".join(f"{number} in {', '.join(titles)}" for number, titles in tables.items())


def _table(table: PaperTable, result: Result | None) -> str:
    parts = [f"## {table.title}\n", f"{table.text}\n", _claims(table, result)]
    if result is not None and any(cell["values"] for row in _cells(table, result).values() for cell in row.values()):
        parts += [_rows(table, result), f"![{table.title}](paper/{table.name}.svg)\n"]
        if (made := _origin(result["figures"]["origins"][table.name])) != _origin(result):
            parts.append(f"Measured {made}.\n")
    return "\n".join(parts)


def _claims(table: PaperTable, result: Result | None) -> str:
    found = {} if result is None else {claim["name"]: claim for claim in result["claims"]}
    head = ("claim", "paper", "ours", "standard error", "seeds", "verdict")
    return markdown(head, [_claim(claim, found.get(claim.name)) for claim in table.claims])


def _claim(claim: Claim, found: Result | None) -> tuple[str, ...]:
    paper = "-" if claim.paper is None else f"{claim.paper:+.2f} {_UNITS[claim.unit]}"
    if found is None or found["ours"] is None:
        return (claim.text, paper, NOT_MEASURED, "", "", "")
    digits = 3 if claim.unit == "nats" else 2
    error = "-" if found["standard_error"] is None else f"{found['standard_error']:.{digits}f}"
    ours = f"{found['ours']:+.{digits}f} {_UNITS[claim.unit]}"
    measured, wanted = found["seeds"], found["seeds_of_design"]
    seeds = str(measured) if measured == wanted else f"{measured} of {wanted}"
    return (claim.text, paper, ours, error, seeds, f"**{found['verdict']}**")


def _cells(table: PaperTable, result: Result) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = result["figures"]["tables"].get(table.name, {})
    return rows


def _rows(table: PaperTable, result: Result) -> str:
    cells = _cells(table, result)
    head = ("", *(column.title for column in table.columns), "seeds")
    return markdown(
        head,
        [
            (
                f"`{label}`",
                *(_cell(found[column.title], column.form) for column in table.columns),
                str(max(len(cell["values"]) for cell in found.values())),
            )
            for label, found in cells.items()
        ],
    )


def _cell(found: dict[str, Any], kind: str) -> str:
    if found["mean"] is None:
        return NOT_MEASURED
    error = found["standard_error"]
    return format(found["mean"], kind) + ("" if error is None else f" ± {format(error, kind)}")


def _at_full_size() -> str:
    lines = []
    for row in ROWS.values():
        base = "BASE" if row.start == "base" else "AR_STAGE"
        words = ["nld-train", f"experiment={row.experiment}", f"init.checkpoint={base}", f"run.dir=runs/{row.name}"]
        lines.append(" ".join([*words, *row.settings]))
    commands = "\n".join(lines)
    return f"""\
## The same rows at 8B

The settings of a row are keys of `nld-train` and mean the same in `experiment=ablation_8b`: 25 billion tokens from an
8B base model (BASE), or from a checkpoint of the AR stage (AR_STAGE); those of conversations in `experiment=sft_8b`.
Not run.

```text
{commands}
```
"""
