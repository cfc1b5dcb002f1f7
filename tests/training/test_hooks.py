"""Hooks: a new one is one file, its metrics are everywhere, and `run.hooks` decides which run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import records_of
from training_runs import AR_STEPS, Train

from nld_train.monitoring.run_status import run_status
from nld_train.training.metrics.jsonl import Record, read_metrics
from nld_train.training.metrics.metric import Metric
from nld_train.training.metrics.registry import MetricTable
from nld_train.training.metrics.report import report_panels
from nld_train.training.metrics.summary import write_summary
from nld_train.training.metrics.wandb_log import wandb_values

Command = Callable[..., tuple[int, str]]
HOOK = "run.hooks=[validation,'weight_norm_hook:WeightNormHook']"
MEASURED = [AR_STEPS + 2, AR_STEPS + 4]


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """The lines of the console of `hooked`."""
    return []


@pytest.fixture(scope="module")
def hooked(train: Train, tmp_path_factory: pytest.TempPathFactory, printed: list[str]) -> Path:
    from rich.console import Console

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Console, "print", lambda _, text, **__: printed.append(text))
        return train(tmp_path_factory.mktemp("hooked"), HOOK, "validation.every=4", "logging.every=1000")


def test_what_a_hook_records_is_in_the_record_of_the_step(hooked: Path) -> None:
    records = [record for record in records_of(hooked) if "weight_norm" in record]
    assert [record["step"] for record in records] == MEASURED
    for record in records:
        assert 0 < record["norms"]["smallest"] < record["norms"]["largest"] < record["weight_norm"]
    # Hooks run in the order of `run.hooks`.
    assert list(records[-1])[-3:] == ["validation", "weight_norm", "norms"]


def test_it_is_on_the_console(hooked: Path, printed: list[str]) -> None:
    """Also after steps whose own line is not printed."""
    for record in (record for record in records_of(hooked) if "weight_norm" in record):
        assert f"       weight_norm {record['weight_norm']:.4g}" in printed
        smallest, largest = record["norms"].values()
        assert f"       norms/smallest {smallest:.4g}  norms/largest {largest:.4g}" in printed


def test_it_is_in_the_report(hooked: Path) -> None:
    records = read_metrics(hooked / "metrics.jsonl").records
    panels = {panel.y_label: panel for panel in report_panels(records, MetricTable())}
    points = [(record["tokens"], record["weight_norm"]) for record in records if "weight_norm" in record]
    assert [curve.points for curve in panels["weight_norm"].curves] == [points]
    assert [curve.label for curve in panels["norms"].curves] == ["norms/smallest", "norms/largest"]


def test_it_is_in_the_summary(hooked: Path) -> None:
    stages = json.loads((hooked / "summary.json").read_text())["stages"]
    found = [record["weight_norm"] for record in records_of(hooked) if "weight_norm" in record]
    assert stages["joint"]["first_weight_norm"] == pytest.approx(sum(found) / len(found))
    assert {"last_weight_norm", "first_norms/smallest", "last_norms/largest"} <= stages["joint"].keys()
    assert not any("norm" in name for name in stages["ar"])


def test_weights_and_biases_gets_it(hooked: Path) -> None:
    record = records_of(hooked)[-1]
    values = wandb_values(record, MetricTable())
    assert values["weight_norm"] == record["weight_norm"]
    assert values["norms/largest"] == record["norms"]["largest"]


def test_nld_status_shows_it(hooked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nld_train.commands.status import main

    record = records_of(hooked)[-1]
    last = run_status(hooked)["last"]
    assert last["weight_norm"] == {"step": record["step"], "value": record["weight_norm"]}
    assert last["norms"] == {"step": record["step"], **record["norms"]}
    assert main([str(hooked)]) == 0
    assert f"largest {record['norms']['largest']:.4g} (step {record['step']})" in capsys.readouterr().out


def test_a_hook_that_is_not_listed_does_not_run(train: Train, tmp_path: Path) -> None:
    records = records_of(train(tmp_path, "run.hooks=[]", "validation.every=1", "run.max_steps=1"))
    assert not any("validation" in record for record in records)


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ("[validate]", "run.hooks: 'validate' is unknown; must be one of validation, decoding, or MODULE:NAME"),
        ("[validation,validation]", "run.hooks=[validation,validation]: must name each hook only once"),
        ("['no_such_module:Hook']", "run.hooks: no_such_module:Hook cannot be imported"),
        ("['weight_norm_hook:NoSuchHook']", "run.hooks: weight_norm_hook:NoSuchHook cannot be imported"),
    ],
)
def test_unknown_hooks_are_refused(command: Command, tmp_path: Path, hooks: str, message: str) -> None:
    status, errors = command(f"run.dir={tmp_path}/run", f"run.hooks={hooks}")
    assert (status, errors.count("\n")) == (2, 1), errors
    assert errors.startswith(f"error: {message}")
    assert not list(tmp_path.rglob("metrics.jsonl"))


class Ratio(Metric):
    """A metric with a form of its own."""

    def step_text(self, value: float) -> str:
        return f"{self.name} {value:.0%}"

    def summary(self, records: list[Record]) -> Record:
        return {self.name: [record[self.name] for record in records]}


def test_a_metric_of_another_form(hooked: Path, tmp_path: Path) -> None:
    """It decides how it is shown, and the default is not used."""
    table = MetricTable([Ratio("weight_norm")])
    assert table["weight_norm"].lines(0.25) == ["       weight_norm 25%"]
    (tmp_path / "metrics.jsonl").write_bytes((hooked / "metrics.jsonl").read_bytes())
    stage = write_summary(tmp_path, table)["stages"]["joint"]
    assert len(stage["weight_norm"]) == len(MEASURED)
    assert "first_weight_norm" not in stage
