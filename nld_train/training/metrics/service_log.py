"""Where else than in its own files a run is logged: services that may fail without ending it, one class for each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from nld_train.config.schema import Config
from nld_train.output import write_error
from nld_train.printable import one_line
from nld_train.registry import resolve
from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.registry import MetricTable

# A new service is a file with a subclass of `ServiceLog` and an entry here.
SERVICES = (
    "nld_train.training.metrics.wandb_log:WandbLog",
    "nld_train.training.metrics.tensorboard_log:TensorboardLog",
)


class ServiceLog(ABC):
    """A service. Where its keys switch it off it does nothing; after a failure, which is one warning, neither.

    Args:
        config: the run.
        metrics: of the run; None for the registered ones.

    Attributes:
        name: of the service.
    """

    name: ClassVar[str]

    def __init__(self, config: Config, metrics: MetricTable | None = None) -> None:
        self._metrics = metrics or MetricTable()
        self._run = self._open(config)

    @abstractmethod
    def _open(self, config: Config) -> Any:
        """The service's own object for the run; None where it is off or cannot be opened, which is a warning."""

    def write(self, record: Record) -> None:
        """Logs a step."""
        self._attempt(lambda run: self._write(run, record))

    @abstractmethod
    def _write(self, run: Any, record: Record) -> None: ...

    def finish(self, summary: Record | None = None, image: Path | None = None) -> None:
        """Ends the run, with its summary and, if there is one, the image of its curves."""
        self._attempt(lambda run: self._finish(run, summary, image))

    @abstractmethod
    def _finish(self, run: Any, summary: Record | None, image: Path | None) -> None: ...

    def _attempt(self, call: Callable[[Any], Any]) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:  # whatever the library raises
            self._run = None
            write_error(f"warning: {self.name} fails ({one_line(str(error))}); the run continues without it")


def open_services(config: Config, metrics: MetricTable) -> list[ServiceLog]:
    """The services of a run; those that are off import no library."""
    return [resolve(service)(config, metrics) for service in SERVICES]
