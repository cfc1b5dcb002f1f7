"""`report.png`: titles, running means over single steps, and legends that hide nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nld_train.training.metrics.metric import Curve, Panel
from nld_train.training.metrics.registry import MetricTable
from nld_train.training.metrics.report import draw_report, report_panels, smoothed, write_report

STEPS = 200


def record_of(step: int) -> dict[str, Any]:
    stage = "ar" if step <= STEPS // 2 else "joint"
    losses = {"loss": 5.0 / step + step % 2, "ar_loss": 4.0 / step, "diffusion_loss": 1.0 if stage == "joint" else None}
    speed = {"grad_norm": 1.0 + step % 3, "learning_rate": 1e-3, "tokens_per_second": 1000.0 + step % 5}
    more = {"validation": {"ar_loss": 2.0, "diffusion_loss": {"0.5": 3.0}}} if step % 50 == 0 else {}
    return {"stage": stage, "step": step, "tokens": 10 * step, "own": 1.0, **losses, **speed, **more}


RECORDS = [record_of(step) for step in range(1, STEPS + 1)]


@pytest.fixture(scope="module")
def figure() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = draw_report(report_panels(RECORDS, MetricTable()), RECORDS)
    drawn.canvas.draw()
    yield drawn
    plt.close(drawn)


def test_every_panel_has_a_title(figure: Any) -> None:
    titles = [axis.get_title() for axis in figure.axes if axis.axison and axis.lines]
    assert {"Training loss", "Learning rate and gradient norm", "Speed of training", "Held-out loss", "own"} <= {
        *titles
    }


def test_no_legend_lies_over_its_curves(figure: Any) -> None:
    legends = {axis: axis.get_legend() for axis in figure.axes if axis.get_legend() is not None}
    assert len(legends) >= 3
    for axis, legend in legends.items():
        box = legend.get_window_extent()
        assert box.width < 1.2 * axis.get_window_extent().width
        assert not any(box.overlaps(axis.get_window_extent()) for axis in figure.axes)
        assert figure.bbox.containsx(box.x0)
        assert figure.bbox.containsy(box.y0)
        assert figure.bbox.containsx(box.x1)


def test_both_curves_of_two_axes_are_in_one_legend(figure: Any) -> None:
    (axis,) = [axis for axis in figure.axes if axis.get_title() == "Learning rate and gradient norm"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["learning rate", "gradient norm"]


def test_running_means_are_drawn_over_pale_steps(figure: Any) -> None:
    (axis,) = [axis for axis in figure.axes if axis.get_title() == "Training loss"]
    raw, mean = axis.lines[:2]
    assert raw.get_alpha() < 0.5
    assert mean.get_alpha() is None
    assert raw.get_color() == mean.get_color()
    assert mean.get_label() == "total"
    assert list(raw.get_xdata()) == list(mean.get_xdata())


def test_a_running_mean_does_not_reach_over_the_border_of_stages() -> None:
    points = [(float(x), 0.0 if x <= 100 else 10.0) for x in range(1, 201)]
    means = smoothed(points, [100.0])
    assert means == [y for _, y in points]
    assert smoothed(points, [])[99] == pytest.approx(5 / 11 * 10)


def test_a_running_mean_leaves_out_what_is_not_finite() -> None:
    points = [(float(x), float("nan") if x == 100 else 1.0) for x in range(1, 201)]
    assert smoothed(points, []) == [1.0] * 200


def test_few_points_have_no_running_mean() -> None:
    assert smoothed([(float(x), 1.0) for x in range(19)], []) == []


def test_the_name_of_a_run_is_no_formula(tmp_path: Path) -> None:
    directory = tmp_path / "costs $x^$ and $\\frac$"
    directory.mkdir()
    lines = (json.dumps({**record, "$y^$": 1.0, "step_tokens": 10, "seconds": 1.0}) for record in RECORDS[:2])
    (directory / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert write_report(directory).read_bytes().startswith(b"\x89PNG")


def test_a_panel_without_a_title_is_named_by_what_it_shows() -> None:
    import matplotlib.pyplot as plt

    drawn = draw_report([Panel("own", [Curve("", [(0, 1), (1, 2)])])], [])
    assert drawn.axes[0].get_title() == "own"
    assert drawn.axes[0].get_legend() is None
    plt.close(drawn)
