"""Opens a checkpoint of Megatron's layout for decoding; imports Megatron where weights are read: it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nld_train.config.schema import Config
from nld_train.decoding.clean_stream import PAPER, CleanStream
from nld_train.decoding.engines.engine import Engine
from nld_train.model.adapter_files import read_shape, read_tensors


@contextmanager
def open_megatron(
    directory: Path, config: Config, adapter: Path | None, clean_stream: CleanStream = PAPER
) -> Iterator[Engine]:
    """This rank's part of Megatron's model, with weights that were saved under any layout."""
    from nld_train.library_warnings import ignore_known_warnings

    ignore_known_warnings()
    from nld_train.decoding.engines.megatron_engine import MegatronEngine
    from nld_train.model.adapters import DRAFTER, attach_adapter, load_adapter
    from nld_train.model.build import build_model, transformer_config
    from nld_train.model.rotary import RotaryEmbedding
    from nld_train.training.checkpoint import load as checkpoint
    from nld_train.training.loop.parallel import parallel_groups

    model = config.model
    with parallel_groups(config) as device:
        chunks = build_model(config, transformer_config(config, device), device)
        checkpoint.load(directory, chunks, None)
        if adapter is not None:
            attach_adapter(chunks, DRAFTER, read_shape(adapter, model))
            load_adapter(chunks, DRAFTER, read_tensors(adapter))
        whole = MegatronEngine(chunks, model, RotaryEmbedding(model, device), clean_stream)
        with whole.decoding() as engine:
            yield engine
