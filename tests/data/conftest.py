"""Small real token sets on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from token_documents import random_documents

from nld_train.config.schema import DiffusionConfig
from nld_train.data.packed import PackedSamples, indexed_dataset_module
from nld_train.data.samples import SampleSettings

WriteSet = Callable[..., str]


@pytest.fixture(scope="session")
def write_set() -> WriteSet:
    """Writes documents (sequences of ids) with Megatron's own builder; returns the prefix."""

    def write(prefix: Path, documents: Sequence[Sequence[int]], dtype: type = np.uint16) -> str:
        builder = indexed_dataset_module().IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        for document in documents:
            builder.add_document(np.array(document), [len(document)])
        builder.finalize(f"{prefix}.idx")
        return str(prefix)

    return write


@pytest.fixture(scope="session")
def two_sets(tmp_path_factory: pytest.TempPathFactory, write_set: WriteSet) -> tuple[PackedSamples, PackedSamples]:
    """Two sets of samples of length 24."""
    folder = tmp_path_factory.mktemp("sets")
    first = write_set(folder / "first", random_documents(1, 120))
    second = write_set(folder / "second", random_documents(2, 60))
    return PackedSamples(first, 24), PackedSamples(second, 24)


@pytest.fixture
def settings() -> SampleSettings:
    """Joint samples of a byte model."""
    return SampleSettings(
        stage="joint",
        seed=7,
        noisy_length=24,
        documents="isolate",
        diffusion=DiffusionConfig(block_size=5, epsilon=1e-3, levels="stratified", level_scope="sequence"),
        global_size=8,
        vocab_size=260,
        mask_token_id=3,
        eos_token_id=2,
    )
