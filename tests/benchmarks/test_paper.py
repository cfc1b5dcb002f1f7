"""The small ablations: the test of differences, the steps and their records, the page, and a suite that is run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import __main__ as paper
from benchmarks.paper.claims import CLAIMS, TABLES
from benchmarks.paper.design import Design
from benchmarks.paper.document import page
from benchmarks.paper.earlier import with_earlier
from benchmarks.paper.results import all_claims, all_figures
from benchmarks.paper.rows import ROWS, training_step
from benchmarks.paper.runner import Runner
from benchmarks.paper.statistics import verdict
from benchmarks.paper.steps import Step, in_order
from benchmarks.record import RESULTS
from benchmarks.results_table import load
from benchmarks.row_process import ROOT, Stop
from nld_train.config.compose import compose_config
from nld_train.config.validate import validate

SHELL = ("sh", "-c")


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([], "undecided"),
        ([3.0], "undecided"),  # of one seed nothing is known
        ([1.0, 1.2, 0.9], "same"),
        ([-1.0, -1.2, -0.9], "opposite"),
        ([1.0, -1.2, 0.9], "undecided"),
        # Mean 1 and standard error 0.5 or a little more: on both sides of two standard errors.
        ([0.51, 1.49], "same"),
        ([0.49, 1.51], "undecided"),
        ([0.0, 0.0], "undecided"),
    ],
)
def test_a_verdict_needs_two_standard_errors(differences: list[float], expected: str) -> None:
    assert verdict(differences) == expected


def test_names_of_claims_tables_and_rows_fit_each_other() -> None:
    names = [claim.name for table in TABLES for claim in table.claims]
    assert len(set(names)) == len(names) == len(CLAIMS)
    for table in TABLES:
        assert {claim.name.partition("/")[0] for claim in table.claims} == {table.name}
        shown = {value.row for line in table.lines for value in line.values}
        assert {value.row for value in table.values()} == shown
        assert all(len(line.values) == len(table.columns) for line in table.lines)
    assert {value.row for table in TABLES for value in table.values()} == set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_trainings_are_valid_and_rows_change_the_experiment_at_8b(row: str) -> None:
    (words,) = training_step(row, 0, Design()).command_lines(Path("/nowhere"))
    validate(compose_config([*words[1:], "run.dry=true"]), 1)
    if row != "joint":
        at_8b = [f"experiment={ROWS[row].experiment}", "run.dry=true"]
        assert compose_config([*at_8b, *ROWS[row].settings]) != compose_config(at_8b)


def test_a_step_is_known_by_its_commands_and_inputs() -> None:
    data = Step("data", "data", (("a",),))
    step = Step("one", "runs", (("b", "{0}", "{own}"),), (data,))
    assert step.identity == replace(step, label="other").identity
    others = [
        replace(step, commands=(("c",),)),
        replace(step, after=(replace(data, commands=(("b",),)),)),
        replace(step, output="measured"),
    ]
    assert len({one.identity for one in [step, *others]}) == 4
    assert step.command_lines(Path("/f")) == [["b", f"/f/data/data-{data.identity}", f"/f/runs/{step.name}"]]
    assert in_order([step, others[0], step]) == [data, step, others[0]]


def test_rows_of_a_seed_share_what_they_start_from() -> None:
    steps = in_order([step for table in TABLES for step in table.steps(Design(seeds=(0, 1)))])
    for stage, output in (("base", "runs"), ("ar", "runs"), ("tasks", "data")):
        found = [step for step in steps if re.fullmatch(f"{stage}(-seed-.)?", step.label) and step.output == output]
        assert len(found) == (1 if stage == "tasks" else 2)
    joint = [step for step in steps if step.label == "joint-seed-0"]
    assert len(joint) == 1


def folders(folder: Path) -> Path:
    for name in ("data", "runs", "measured", "steps", "logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


def shell_steps(folder: Path) -> tuple[Step, Step, Step]:
    """A step, one that fails until a file is there, and one that reads both."""
    first = Step("first", "measured", (("echo 1 >> {own}",), ("echo 2 >> {own}",)))
    second = Step("second", "measured", ((f"test -e {folder}/repaired && echo 3 > {{own}}",),))
    return first, second, Step("third", "measured", (("cat {0} {1} > {own}",),), (first, second))


def test_finished_steps_are_not_repeated_and_failed_ones_are(tmp_path: Path) -> None:
    first, second, third = shell_steps(folders(tmp_path))
    runner = Runner(tmp_path, 2, SHELL, lambda line: None)
    assert runner.run([third], Stop()) == [second]
    assert first.finished(tmp_path)
    assert not second.finished(tmp_path)
    assert not third.finished(tmp_path)
    (tmp_path / "repaired").touch()
    assert runner.run([third], Stop()) == []
    assert third.path(tmp_path).read_text().split() == ["1", "2", "3"]
    record = json.loads(third.record(tmp_path).read_text())
    assert record["commands"] == [["cat {0} {1} > {own}"]]
    assert record["seconds"] >= 0


PROGRAM = """
import sys
from pathlib import Path
from benchmarks.paper.runner import Runner
from benchmarks.paper.steps import Step
from benchmarks.row_process import Stop
folder = Path(sys.argv[1])
step = Step("slow", "measured", (("echo $$ > %s/pid; while ! test -e %s/go; do sleep 0.1; done; echo 1 > {own}" % (
    folder, folder),),))
Runner(folder, 1, ("sh", "-c")).run([step], Stop())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes do not end with their parent")
def test_a_killed_program_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    words = [sys.executable, "-c", PROGRAM, str(folders(tmp_path))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) as program:
        child = _wait_for(tmp_path / "pid")
        program.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
    assert not list((tmp_path / "steps").iterdir())
    (tmp_path / "go").touch()
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert len(list((tmp_path / "steps").iterdir())) == 1


def _wait_for(path: Path) -> int:
    end = time.monotonic() + 60
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return int(path.read_text())


def finish(step: Step, folder: Path, content: Any) -> None:
    """As if the step had run."""
    if step.output == "runs":
        step.path(folder).mkdir()
        lines = [json.dumps({"tokens": 1, "validation": content}), json.dumps({"tokens": 2})]
        (step.path(folder) / "metrics.jsonl").write_text("\n".join(lines))
    else:
        step.path(folder).write_text(json.dumps(content))
    step.record(folder).write_text("{}")


def test_claims_compare_rows_seed_by_seed(tmp_path: Path) -> None:
    """The more seeds, the larger the numbers of all rows: paired differences do not see it."""
    design = Design(seeds=(0, 1, 2))
    (table,) = (table for table in TABLES if table.name == "figure_4")
    better = {"joint": 1.0, "no_ar_loss": 0.0}
    for seed, (row, by) in product(design.seeds, better.items()):
        for measure in {value.measure for value in table.values()}:
            step = measure.step(row, seed, design)
            if step.finished(folders(tmp_path)):
                continue
            score = 0.1 * seed + 0.01 * by + 0.0001 * seed * by
            kinds = {"nld_tasks_copy": score - 0.1, "nld_tasks_add": score + 0.1, "nld_tasks": 7.0}
            results = {kind: {"exact_match,none": value} for kind, value in kinds.items()}
            losses = {"ar_loss": 1 - by, "diffusion_loss": {"0.5": 2 + seed - by, "1": 4 + seed - by}}
            evaluation = {"generation": {"copy": {"new_tokens": 4, "forwards": 2}}}
            finish(step, tmp_path, losses if step.output == "runs" else {"results": results, "evaluation": evaluation})
    found = {claim["name"]: claim for claim in all_claims(design, tmp_path)}
    accuracy = found["figure_4/accuracy"]
    assert accuracy["differences"] == pytest.approx([1.0, 1.01, 1.02])
    assert accuracy["ours"] == pytest.approx(1.01)
    assert accuracy["standard_error"] == pytest.approx(0.01 / 3**0.5)
    assert (accuracy["seeds"], accuracy["verdict"]) == (3, "same")
    assert found["figure_4/diffusion_loss"]["ours"] == pytest.approx(1.0)
    more = {claim["name"]: claim for claim in all_claims(Design(seeds=(0, 1, 2, 3)), tmp_path)}["figure_4/accuracy"]
    assert (more["ours"], more["seeds"], more["seeds_of_design"]) == (accuracy["ours"], 3, 4)
    assert more["verdict"] == "undecided", "a seed is missing"
    unmeasured = found["table_2/ar_over_alpha_0.1"]
    assert (unmeasured["ours"], unmeasured["seeds"], unmeasured["verdict"]) == (None, 0, "undecided")
    figures = all_figures(design, tmp_path)
    assert figures["tables"]["figure_4"]["joint"]["diffusion loss"]["values"] == pytest.approx([2.0, 3.0, 4.0])
    assert [point["diffusion"] for point in figures["curves"]["figure_4"]["joint"]] == pytest.approx([3.0])


# That of the command line.
ON_CPU = Design(settings=("execution.device=cpu",))


def test_a_table_keeps_what_an_earlier_report_measured_more_of(tmp_path: Path) -> None:
    """Another folder that has measured one table does not empty the others."""
    earlier = load(RESULTS, paper.NAME)
    assert earlier is not None
    figures, claims = all_figures(ON_CPU, folders(tmp_path)), all_claims(ON_CPU, tmp_path)
    merged, merged_claims = with_earlier(figures, claims, earlier)
    assert (merged, merged_claims) == (earlier["figures"] | {"origins": merged["origins"]}, earlier["claims"])
    assert merged["origins"]["table_1"] == earlier["figures"]["origins"]["table_1"] != figures["origins"]["table_1"]
    # This one has more of a table.
    cell = figures["tables"]["table_1"]["joint"]["diffusion"]
    cell["values"] = [0.5] * 100
    merged, merged_claims = with_earlier(figures, claims, earlier)
    assert merged["tables"]["table_1"] == figures["tables"]["table_1"]
    assert merged["origins"]["table_1"] == figures["origins"]["table_1"]
    by_table = [[c for c in found if c["name"].startswith("table_1/")] for found in (claims, merged_claims)]
    assert by_table[0] == by_table[1]
    assert merged["tables"]["table_2"] == earlier["figures"]["tables"]["table_2"]


def test_figures_of_another_design_or_other_lines_are_not_kept(tmp_path: Path) -> None:
    earlier = load(RESULTS, paper.NAME)
    assert earlier is not None
    more_tokens = replace(ON_CPU, held_out=61)
    figures, claims = all_figures(more_tokens, folders(tmp_path)), all_claims(more_tokens, tmp_path)
    assert with_earlier(figures, claims, earlier) == (figures, claims)
    figures, claims = all_figures(ON_CPU, tmp_path), all_claims(ON_CPU, tmp_path)
    figures["tables"]["table_1"]["another"] = {}
    assert with_earlier(figures, claims, earlier)[0]["tables"]["table_1"] == figures["tables"]["table_1"]
    claims.append({**claims[0], "name": "table_2/new"})
    assert with_earlier(figures, claims, earlier)[0]["tables"]["table_2"] == figures["tables"]["table_2"]


def test_the_page_is_that_of_the_results() -> None:
    """`python -m benchmarks.paper --report` writes it."""
    assert (ROOT / "docs/paper.md").read_text() == page(Design(), load(RESULTS, paper.NAME))


# Runs a step with the AR loss subtracted where it should be added.
PLANTED = """
import runpy, sys
from nld_train.losses import objective
right = objective.Terms.loss
def wrong(terms, weights, *others):
    return right(terms, type(weights)(-weights.ar, weights.diffusion), *others)
objective.Terms.loss = wrong
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def small_suite(folder: Path, launch: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Runs the small suite; returns its claims by name."""
    words = ["--small", "--folder", str(folder), "--results", str(folder), "--page", str(folder / "paper.md")]
    assert paper.main(words, launch) == 0
    assert "## Design" in (folder / "paper.md").read_text()
    assert (folder / "paper/figure_4.svg").exists()
    return {claim["name"]: claim for claim in json.loads((folder / "paper.json").read_text())["claims"]}


@pytest.mark.long
def test_a_suite_is_run_and_a_sign_error_changes_a_verdict(tmp_path: Path) -> None:
    claims = small_suite(tmp_path / "right")
    assert all(claims[f"figure_4/{name}"]["seeds"] == 2 for name in ("accuracy", "diffusion_loss", "ar_loss"))
    assert claims["figure_4/ar_loss"]["verdict"] == "same"
    # Joint training alone is repeated, with the error: the other row has no AR loss.
    wrong = tmp_path / "wrong"
    shutil.copytree(tmp_path / "right", wrong)
    for seed in (0, 1):
        for path in wrong.glob(f"*/joint-seed-{seed}-*"):
            if "diffusion" not in path.name:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    program = tmp_path / "planted.py"
    program.write_text(PLANTED)
    assert small_suite(wrong, (sys.executable, str(program)))["figure_4/ar_loss"]["verdict"] == "opposite"
