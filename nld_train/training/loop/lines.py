"""The lines with which a run begins and ends."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from nld_train.config.schema import Config


def first_line(config: Config, data_size: int, device: torch.device, origin: Path | str) -> str:
    """Layout, device, where the weights come from, and the folder.

    Args:
        config: the settings.
        data_size: number of data-parallel replicas.
        device: of the processes.
        origin: a checkpoint, or what stands for one.
    """
    parallel = config.parallel
    context = f" x CP {parallel.context}" if parallel.context > 1 else ""
    layout = f"TP {parallel.tensor} x PP {parallel.pipeline}{context} x DP {data_size} on {device.type}"
    return f"{config.run.name}: {layout}, from {origin}, into {config.run.dir}"


def last_line(config: Config, status: int, stops_early: bool) -> str:
    """How the run ended, and where its files are.

    Args:
        config: the settings.
        status: exit status of a signal that ended it, or 0.
        stops_early: whether `run.max_steps` ends it before its stages do.
    """
    if status:
        message = f"stopped by a signal, saved (exit code {status}); the same command continues it"
    else:
        message = "stopped at run.max_steps, saved; a larger value continues it" if stops_early else "finished"
    directory = config.run.dir
    files = f"{directory}/summary.json and report.png"
    page = f"nld-report {shlex.quote(directory)} writes a page with curves and texts being decoded"
    return f"{message}: {files}; {page}"
