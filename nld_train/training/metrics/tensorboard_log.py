"""A run in TensorBoard."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.output import write_error
from nld_train.printable import one_line
from nld_train.training.metrics.jsonl import Record, read_metrics
from nld_train.training.metrics.metric import numbers
from nld_train.training.metrics.service_log import ServiceLog

FOLDER = "tensorboard"


def require_tensorboard(config: Config) -> None:
    """Raises `UserError` where `logging.tensorboard` needs a package that is not installed; imports nothing."""
    if config.logging.tensorboard and find_spec("tensorboard") is None:
        raise UserError(
            "logging.tensorboard=true: needs the package tensorboard; install nld-train[tensorboard], or set false"
        )


class TensorboardLog(ServiceLog):
    """The numbers of each step, in event files in `<run.dir>/tensorboard`, for the key `logging.tensorboard`."""

    name = "TensorBoard"

    def _open(self, config: Config) -> Any:
        if not config.logging.tensorboard:
            return None
        require_tensorboard(config)
        from torch.utils.tensorboard import SummaryWriter

        directory = Path(config.run.dir)
        try:
            # The steps after the checkpoint from which a run continues are made again, and not shown twice.
            records = read_metrics(directory / "metrics.jsonl").records
            return SummaryWriter(str(directory / FOLDER), purge_step=records[-1]["step"] + 1 if records else None)
        except Exception as error:  # whatever the library raises
            write_error(
                f"warning: logging.tensorboard=true fails ({one_line(str(error))}); the run continues without it"
            )
            return None

    def _write(self, run: Any, record: Record) -> None:
        for name, value in record.items():
            for tag, number in numbers(name, value).items():
                run.add_scalar(tag, number, record["step"])

    def _finish(self, run: Any, summary: Record | None, image: Path | None) -> None:
        del summary
        if image is not None:
            import matplotlib.image

            run.add_image("report", matplotlib.image.imread(image)[..., :3], dataformats="HWC")
        run.close()
