"""Import, load under TP2 x PP2, save there, export: the same bits. One process loads what that layout saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import run_ranks
from hugging_face_sources import SOURCES, Source, read_tensors, write_source
from test_conversion_round_trip import FORMATS, assert_same_bits, expected_tensors
from torch import Tensor

from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.importing import import_checkpoint
from checkpoint_convert.megatron import MegatronWeights

pytestmark = pytest.mark.long
WORKER = Path(__file__).with_name("conversion_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sources, imported, and saved by one group of four processes."""
    folder = tmp_path_factory.mktemp("layouts")
    for source in SOURCES:
        write_source(folder / source.name / "source", source)
        import_checkpoint(folder / source.name / "source", folder / source.name / "imported")
    done = run_ranks(4, [str(WORKER), str(folder), *(source.name for source in SOURCES)], timeout=500)
    assert done.status == 0, done.output[-20000:]
    return folder


def _meaning(source: Source, tmp_path: Path) -> dict[str, Tensor]:
    return write_source(tmp_path / "again", source)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_save_under_tp2_pp2_returns_every_tensor(source: Source, folder: Path, tmp_path: Path) -> None:
    """In both formats, which differ in the names of tensors only."""
    saved = folder / source.name / "saved"
    # The save pads 67 ids to 68; the export does not.
    assert MegatronWeights(saved)._sizes["output_layer.weight"] == (68, 40)
    dtype = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: None}[source.dtype]
    # A checkpoint of a run does not record that the head was tied: both formats have a head.
    meaning, untied = _meaning(source, tmp_path), replace(source, tied=False)
    for output_format in FORMATS:
        export_checkpoint(saved, tmp_path / output_format, output_format, dtype=dtype)
        assert_same_bits(read_tensors(tmp_path / output_format), expected_tensors(meaning, untied, output_format))


@pytest.mark.usefixtures("groups")
def test_one_process_loads_what_four_saved(folder: Path) -> None:
    from converted_models import config_of, load_model

    config = config_of(folder / "untied" / "imported")
    four, one = (load_model(config, folder / "untied" / kind)[0] for kind in ("saved", "imported"))
    for (name, a), b in zip(four.named_parameters(), one.parameters(), strict=True):
        assert torch.equal(a, b), name
