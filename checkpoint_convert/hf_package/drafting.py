"""Which adapter a model drafts with: one that was attached with PEFT, or that of the model's own directory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from transformers.utils import cached_file, logging

from checkpoint_convert.hf_package.attached_drafter import AttachedDrafter, is_lora, output_projections
from checkpoint_convert.hf_package.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig
from checkpoint_convert.hf_package.drafter import DIRECTORY, FILES, Drafter
from checkpoint_convert.hf_package.encoder import Encoder

logger = logging.get_logger(__name__)


class DraftingMethods:
    """The drafter adapter of a model with `config` and `encoder`."""

    config: NemotronLabsDiffusionConfig
    encoder: Encoder
    _drafter: Drafter | None = None

    def drafter(self) -> Drafter | AttachedDrafter | None:
        """The adapter that drafts; None if there is none.

        One that was attached with PEFT comes first. Otherwise that of `load_drafter`, or of `linear_spec_lora/` in the
        model's directory, which is loaded on first use; but not where PEFT has put a layer around `o_proj`.
        """
        if any(map(is_lora, output_projections(self.encoder))):
            return AttachedDrafter.find(self.encoder)
        if self._drafter is None and (directory := self._adapter_directory()) is not None:
            self.load_drafter(directory)
        return self._drafter

    def load_drafter(self, directory: str | Path) -> None:
        """Loads the drafter adapter from a directory in PEFT's format, in place of any other."""
        self._drafter = Drafter(self.encoder, directory)

    def save_drafter(self, save_directory: str | Path) -> None:
        """Copies the files of the drafter adapter, if there is one, into `linear_spec_lora/` of a directory."""
        source = self._adapter_directory() if self._drafter is None else self._drafter.directory
        target = Path(save_directory, DIRECTORY)
        if source is None or target.resolve() == source.resolve():
            return
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(source / name, target / name)

    def _adapter_directory(self) -> Path | None:
        if not self.config.name_or_path:
            return None
        try:
            found = [cached_file(self.config.name_or_path, f"{DIRECTORY}/{name}") for name in FILES]
        except OSError:
            return None
        return Path(found[0]).parent

    @contextmanager
    def _without_attached_drafter(self, mode: str) -> Iterator[None]:
        """Inside this context an adapter that was attached with PEFT to draft is off, but for drafting passes."""
        attached = AttachedDrafter.find(self.encoder)
        if attached is not None and mode != "linear":
            logger.warning_once(
                f"LoRA adapters on o_proj alone ({', '.join(sorted(attached.names))}) are taken for the drafter of "
                f"linear self-speculation: they are off in mode {mode!r}. Merge them to decode with them in every mode."
            )
        with nullcontext() if attached is None else attached.off():
            yield
