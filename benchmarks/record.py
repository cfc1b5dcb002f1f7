"""Writing a measurement: its figures with command, revision, machine and library versions."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nld_train.files import write_atomically
from nld_train.revision import git_revision

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "torch",
    "megatron-core",
    "transformers",
    "transformer-engine",
    "liger-kernel",
    "cut-cross-entropy",
    "triton",
    "numpy",
    "tokenizers",
    "datasets",
    "tiktoken",
)


def write_result(name: str, figures: dict[str, Any], directory: Path = RESULTS, **more: Any) -> Path:
    """Writes `<directory>/<name>.json` and returns its path.

    Args:
        name: of the benchmark.
        figures: the measured figures, as JSON values.
        directory: folder of the results.
        **more: what stands beside the figures.
    """
    result = {
        "benchmark": name,
        "command": _command(),
        "git_revision": git_revision(),
        "machine": machine(),
        "versions": {package: found for package in _PACKAGES if (found := _version(package)) is not None},
        **more,
        "figures": figures,
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    write_atomically(path, json.dumps(result, indent=1) + "\n")
    return path


def result_name(name: str, device: Any) -> str:
    """The name of a result, with the suffix `_gpu` on a GPU, so that results of CPU and GPU do not replace each other.

    `device` is a torch device or its name.
    """
    return f"{name}_gpu" if str(device).startswith("cuda") else name


def _command() -> str:
    """The command line as one would type it in the repository."""
    program = Path(sys.argv[0]).resolve()
    here = Path(__file__).parent
    # A package's program is its `__main__.py`.
    path = program.parent if program.name == "__main__.py" else program
    module = f"-m benchmarks.{path.stem}" if path.parent == here else program.name
    return " ".join(["python", module, *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """Processor, cores and accelerator of this machine."""
    import torch

    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
