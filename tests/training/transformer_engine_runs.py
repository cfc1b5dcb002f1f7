"""Runs whose layers are Megatron's wrappers of Transformer Engine's, in a process of their own (the stand-in)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

DELAYED = ("execution.fp8=hybrid", "execution.fp8_recipe=delayed")
# Ends between the stages, and in the middle of the second.
STOPS = (4, 6)


def train_all(folder: str, settings: list[str]) -> int:
    """All runs of the test, below a folder; the process has imported Megatron without Transformer Engine before."""
    for name in [name for name in sys.modules if name.startswith(("megatron", "nld_train", "checkpoint_convert"))]:
        del sys.modules[name]
    import transformer_engine_stand_in

    transformer_engine_stand_in.install()
    import nld_train.model.build as build

    build.resolve_layers = lambda *_: "transformer_engine"
    _Runs(Path(folder), settings).train()
    return 0


class _Runs:
    def __init__(self, folder: Path, settings: list[str]) -> None:
        self.folder, self.settings = folder, settings

    def train(self) -> None:
        self._run("from_local")
        self._run("bf16", "run.max_steps=4")
        shutil.copytree(self.folder / "bf16", self.folder / "without_scales")
        self._run("bf16")
        self._run("without_scales", *DELAYED)
        self._run("started", f"init.checkpoint={self.folder / 'bf16'}", "run.max_steps=1")
        for stop in ("run.max_steps=6", "run.max_steps=null"):
            self._run("lora", "stages.joint.lora={rank: 2, lora_alpha: 4}", stop)
        self._run("fp8", *DELAYED)
        self._run("fp8_validated", *DELAYED, "validation.every=3")
        for step in STOPS:
            for stop in (f"run.max_steps={step}", "run.max_steps=null"):
                self._run(f"fp8_{step}", *DELAYED, stop)
        self._decode("bf16")

    def _run(self, name: str, *overrides: str) -> None:
        """A part of a run; the settings say that FP8 needs CUDA, so they are not checked."""
        from tiny_runs import composed, undrawn

        from nld_train.training.loop import run

        with undrawn():
            assert run.train(composed(f"run.dir={self.folder / name}", *self.settings, *overrides)) == 0

    def _decode(self, name: str) -> None:
        """What the newest checkpoint of a run answers."""
        from tiny_runs import composed, newest_checkpoint

        from nld_train.decoding.algorithms.decode import decode
        from nld_train.decoding.algorithms.options import DecodeOptions
        from nld_train.decoding.open_megatron import open_megatron

        config = composed(*self.settings)
        with open_megatron(newest_checkpoint(self.folder / name), config, None) as engine:
            result = decode(engine, [[5, 6, 7]], "ar", DecodeOptions(max_new_tokens=6, block_length=5))
        (self.folder / "decoded.json").write_text(json.dumps(result.token_ids))
