"""Assumed and measured figures of the machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nld_train.config.checks import positive
from nld_train.errors import UserError
from nld_train.outside_json import read_object

if TYPE_CHECKING:
    from nld_train.training.stages.kind import StageKind

GIBIBYTE = 2**30
_FILE = Path(__file__).with_name("hardware.yaml")
# A checkout has results beside the package; an installed wheel has none.
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
_KINDS = ("ar", "joint")


@dataclass(frozen=True)
class Hardware:
    """A device and its connections; units as in `hardware.yaml`."""

    peak_tflops: float
    memory_bandwidth: float
    nvlink: float
    network: float
    bandwidth_share: float
    memory_reserve: float
    memory_margin: float
    ar_utilisation: float
    joint_utilisation: float
    tensor_overlap: float

    def fits(self, counted_bytes: float, device_gibibytes: float) -> bool:
        """Whether counted memory fits into a device, with what is not counted and what the count may be wrong by."""
        available = (device_gibibytes - self.memory_reserve) * GIBIBYTE
        return counted_bytes * (1 + self.memory_margin) <= available

    def needed_gibibytes(self, counted_bytes: float) -> float:
        """Memory of the smallest device into which counted memory fits, in GiB."""
        return counted_bytes * (1 + self.memory_margin) / GIBIBYTE + self.memory_reserve

    def utilisation(self, kind: StageKind) -> float:
        """The fraction of the peak that the arithmetic of a step of a stage reaches."""
        assert kind.planned, "another kind is refused with the request"
        return self.joint_utilisation if kind.noisy_stream else self.ar_utilisation


@dataclass(frozen=True)
class Assumptions:
    """The hardware, and the sources of its two utilisations.

    Attributes:
        hardware: with measured utilisations where there are any.
        sources: for each kind of step, in words.
    """

    hardware: Hardware
    sources: dict[str, str]


def assumptions(changes: Mapping[str, Any], results: Path = RESULTS) -> Assumptions:
    """The figures of `hardware.yaml`, replaced by measurements, replaced by the command line.

    Args:
        changes: values by key, from the command line.
        results: folder of benchmark results.

    Raises:
        UserError: an unknown key, or a value that is no number in its range.
    """
    values: dict[str, Any] = yaml.safe_load(_FILE.read_text())
    sources = dict.fromkeys(_KINDS, f"not measured: assumed in nld_train/planner/{_FILE.name}")
    for kind, (value, source) in measured_utilisations(results).items():
        values[f"{kind}_utilisation"], sources[kind] = value, source
    for name, value in changes.items():
        values[name] = _checked(name, value)
        if (kind := name.removesuffix("_utilisation")) in _KINDS:
            sources[kind] = "given on the command line"
    return Assumptions(Hardware(**{name: float(value) for name, value in values.items()}), sources)


def _checked(name: str, value: Any) -> float:
    names = [field.name for field in fields(Hardware)]
    if name not in names:
        raise UserError(f"hardware.{name}: unknown key; valid under hardware: {', '.join(names)}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"hardware.{name}={value}: must be a number")
    if name in ("memory_reserve", "memory_margin", "tensor_overlap"):
        if value < 0:
            raise UserError(f"hardware.{name}={value}: must be at least 0")
    else:
        positive(f"hardware.{name}", value)
    if name.endswith(("_utilisation", "_share", "_overlap", "_margin")) and value > 1:
        raise UserError(f"hardware.{name}={value}: must be at most 1")
    return float(value)


def measured_utilisations(results: Path) -> dict[str, tuple[float, str]]:
    """FLOP utilisation of the arithmetic by kind of step, from the results of `benchmarks.step` taken on a GPU.

    A result is used if it names its device and that device's peak (`training.loop.hardware` has them by name), and has
    seconds and operations by kind. The seconds of the optimizer's update, which is planned separately, are subtracted.
    Of several results the best one is taken: the others had smaller shapes or other kernels.

    Returns:
        For `ar` and `joint`, where there is a measurement: the utilisation, and its source in words.
    """
    best: dict[str, tuple[float, str]] = {}
    for path in sorted(results.glob("*.json")):
        for name, figures, gpu in _step_figures(path):
            peak = figures["peak_tflops"] * 1e12
            for kind in _KINDS:
                seconds = figures["seconds"][kind] - figures.get("update_seconds", 0.0)
                utilisation = figures["operations"][kind] / seconds / peak if seconds > 0 else 0.0
                if utilisation > best.get(kind, (0.0, ""))[0]:
                    best[kind] = (utilisation, f"measured on {gpu} ({name})")
    return best


def _step_figures(path: Path) -> Iterable[tuple[str, dict[str, Any], str]]:
    """Every table of seconds and operations by kind of step in a result file, at any depth.

    Steps on the CPU of a machine with a GPU are left out, as are those of a device whose peak is not known.
    """
    try:
        result = read_object(path)
        gpu = result["machine"]["gpu"]
    except (UserError, KeyError, TypeError):
        return
    pending = [(path.name, result.get("figures"))]
    while pending:
        name, figures = pending.pop()
        if not isinstance(figures, dict) or figures.get("device") == "cpu":
            continue
        tables = [figures.get("seconds"), figures.get("operations")]
        if isinstance(figures.get("peak_tflops"), float) and all(
            isinstance(table, dict) and all(isinstance(table.get(kind), float) for kind in _KINDS) for table in tables
        ):
            yield name, figures, gpu
        else:
            pending += [(f"{name}: {key}", value) for key, value in figures.items()]
