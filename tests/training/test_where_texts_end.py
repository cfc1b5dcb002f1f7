"""Where texts end: documents of random letters, each of which is the last one with probability 0.05.

Nothing but the end depends on anything, so what a model should predict is known: a block of masks after any text holds
the end by its j-th position with probability 1 - 0.95^j (docs/method.md, "Endings").
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import TINY_MODEL, composed, data_overrides, newest_checkpoint, train_here

from nld_train.data.packed import indexed_dataset_module
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import DecodeOptions
from nld_train.decoding.engines.engine import Engine, Step
from nld_train.decoding.engines.megatron_engine import MegatronEngine
from nld_train.decoding.policies.threshold import Threshold
from nld_train.model.build import build_model, transformer_config
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.checkpoint import load as checkpoint
from nld_train.training.loop.parallel import parallel_groups

pytestmark = pytest.mark.long

END_PROBABILITY, EOS, MASK, FIRST_LETTER, LETTERS = 0.05, 2, 3, 4, 6
BLOCK, PROMPT_BLOCKS = 8, 2
STEPS, SAMPLES, LENGTH = 1200, 16, 64
MODEL = (*TINY_MODEL, "model.num_hidden_layers=2", "model.initializer_range=0.05", "execution.device=cpu")


def write_letters(prefix: Path, seed: int) -> str:
    generator = np.random.default_rng(seed)
    builder = indexed_dataset_module().IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for length in generator.geometric(END_PROBABILITY, 25_000):
        letters = generator.integers(FIRST_LETTER, FIRST_LETTER + LETTERS, length)
        builder.add_document(np.append(letters, EOS), [length + 1])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A model that a joint stage has trained on the letters."""
    folder = tmp_path_factory.mktemp("endings")
    run = train_here(
        folder / "run",
        *MODEL,
        *data_overrides(write_letters(folder / "letters", seed=1)),
        f"diffusion.block_size={BLOCK}",
        f"batch.sequence_length={LENGTH}",
        f"batch.global_size={SAMPLES}",
        f"batch.micro_size={SAMPLES}",
        "run.stages=[joint]",
        f"stages.joint.tokens={STEPS * SAMPLES * LENGTH}",
        "stages.joint.alpha=1.0",
        "execution.attention=dense",
        "stages.joint.schedule.learning_rate=3e-3",
        "stages.joint.schedule.final_learning_rate=1e-4",
        f"checkpoint.every={STEPS}",
    )
    config = composed(*MODEL)
    with parallel_groups(config) as device:
        chunks = build_model(config, transformer_config(config, device), device)
        checkpoint.load(newest_checkpoint(run), chunks, None)
        with MegatronEngine(chunks, config.model, RotaryEmbedding(config.model, device)).decoding() as decoding:
            yield decoding


def prompts(count: int) -> list[list[int]]:
    """Letters up to the end of a block; a document begins without a token of its own."""
    generator = np.random.default_rng(7)
    return generator.integers(FIRST_LETTER, FIRST_LETTER + LETTERS, (count, PROMPT_BLOCKS * BLOCK)).tolist()


@torch.no_grad()
def test_a_block_of_masks_holds_the_end_by_each_position_as_often_as_the_documents(engine: Engine) -> None:
    """Position j is the end, or fill after it. The first token of a block is masked here, too."""
    texts = torch.tensor(prompts(64))
    count, length = texts.shape
    engine.allocate(count, length + BLOCK)
    everything = torch.full((count,), True)
    engine.forward(
        Step(
            texts,
            torch.arange(length).expand_as(texts),
            torch.full((count,), length),
            torch.zeros(count).long(),
            everything,
        )
    )
    masks = torch.full((count, BLOCK), MASK)
    positions = (length + torch.arange(BLOCK)).expand_as(masks)
    logits = engine.forward(
        Step(masks, positions, torch.full((count,), BLOCK), torch.full((count,), length), ~everything)
    )
    logits[..., MASK] = float("-inf")
    found = logits.float().softmax(-1)[..., EOS].mean(0)
    expected = 1 - (1 - END_PROBABILITY) ** torch.arange(1, BLOCK + 1)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=0.15)


def test_sampled_diffusion_stops_inside_of_blocks_as_ar_does(engine: Engine) -> None:
    inside = {}
    for mode, policy in (("ar", None), ("diffusion", Threshold(0.9))):
        options = DecodeOptions(
            max_new_tokens=12 * BLOCK, block_length=BLOCK, temperature=1.0, seeds=5, stop_tokens=(EOS,)
        )
        result = decode(engine, prompts(300), mode, options, policy, batch_size=100)
        stops = [len(ids) for ids, end in zip(result.token_ids, result.finish, strict=True) if end == "stop"]
        assert len(stops) > 250, "nearly all documents end within 12 blocks"
        inside[mode] = sum(stop % BLOCK != 0 for stop in stops) / len(stops)
    # Of ends that fall on any position, 7 of 8 are inside.
    assert inside["ar"] == pytest.approx(7 / 8, abs=0.08)
    assert inside["diffusion"] >= 0.8 * inside["ar"]
