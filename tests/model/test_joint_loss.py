"""From samples to loss and gradients through Megatron's schedule, against `transformers` and plain loops alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import naive
import numpy as np
import pytest
import torch
from oracle import in_megatron_layout, masked_logits, oracle_logits, pair, tiny_config
from tolerance import approx_to_rounding, assert_close_to_rounding, forward_additions, gradient_additions
from torch import Tensor

from nld_train.config.schema import Config
from nld_train.data.collate import StreamCollator
from nld_train.losses.objective import TermWeights, denominators
from nld_train.masking.layout import clean_block_ends
from nld_train.masking.noisy_stream import fit, last_tokens, noisy_stream
from nld_train.masking.schedule import noise_schedule
from nld_train.model import streams
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.loop.forward_backward import global_counts, global_terms, run_schedule
from nld_train.training.loop.micro_batch import Placement

pytestmark = pytest.mark.usefixtures("groups")
CPU = torch.device("cpu")
EOS, MASK, ALPHA = 2, 66, 0.3
AVERAGINGS: tuple[Any, ...] = ("global", "contributing", "masked", "sequence")
Samples = dict[str, Tensor]


@pytest.fixture(autouse=True)
def forget_contexts() -> Iterator[None]:
    yield
    streams.clear()


def random_samples(seed: int, count: int, length: int, masking: str = "random", block: int = 4) -> Samples:
    """A global batch: documents of random lengths, prompts that are not maskable, masks that may hit nothing or all.

    The noisy streams have fill after documents, and are longer or shorter than the clean ones.
    """
    generator = np.random.default_rng(seed)
    documents = np.cumsum(generator.random((count, length + 1)) < generator.choice([0.0, 0.15, 0.6]), axis=1)
    tokens = generator.integers(1, MASK, (count, length + 1))
    capacity = max(1, length + (5, -3, 0)[seed % 3])
    streams = [
        fit(noisy_stream(row[:-1], last_tokens(row), block), capacity, block, generator.random(length))
        for row in documents
    ]
    hidden = [stream.tokens(row[:-1], EOS, MASK) for stream, row in zip(streams, tokens, strict=True)]
    maskable = np.array([stream.maskable for stream in streams])
    maskable &= np.array([stream.sources for stream in streams]) >= generator.integers(-1, length // 2 + 1, (count, 1))
    probability = generator.uniform(1e-3, 1, (count, 1)).repeat(capacity, axis=1)
    share = {"random": probability, "nothing": 0.0, "everything": 1.0}[masking]
    return {
        "tokens": torch.from_numpy(tokens),
        "documents": torch.from_numpy(documents),
        "supervised": torch.from_numpy(documents[:, 1:] == documents[:, :-1]),
        "noisy_tokens": torch.from_numpy(np.array(hidden)),
        "blocks": torch.from_numpy(np.array([stream.blocks for stream in streams])),
        "begins": torch.from_numpy(np.array([stream.begins for stream in streams])),
        "maskable": torch.from_numpy(maskable),
        "masked": torch.from_numpy(maskable & (generator.random((count, capacity)) < share)),
        "probability": torch.from_numpy(probability.astype(np.float32)),
    }


def through_the_schedule(
    config: Config,
    model: Any,
    samples: Samples,
    averaging: Any,
    alpha: float,
    micro_size: int,
    ar_weight: float = 1.0,
) -> tuple[float, float]:
    """Both raw terms of the global batch; gradients are left in the model's parameters."""
    schedule = noise_schedule(config.diffusion)
    collator = StreamCollator(alpha > 0, MASK, averaging, schedule, sequences=len(samples["tokens"]))
    cuts = range(0, len(samples["tokens"]), micro_size)
    batches = [{name: tensor[cut : cut + micro_size] for name, tensor in samples.items()} for cut in cuts]
    if alpha == 0:
        batches = [{name: each[name] for name in ("tokens", "documents", "supervised")} for each in batches]
    collated = [collator.of(each) for each in batches]
    divisors = denominators(averaging, global_counts(collated))
    placement = Placement(RotaryEmbedding(config.model, CPU), torch.float32, CPU)
    results = run_schedule([model], collated, divisors, TermWeights(ar_weight, alpha), placement)
    ar, diffusion = global_terms(results, CPU).tolist()
    return ar, diffusion


def through_loops(config: Config, oracle: Any, samples: Samples, averaging: str, alpha: float) -> tuple[Any, Any]:
    """The same from the oracle's whole logits, as scalars that carry gradients."""
    clean, masked, joint = samples["tokens"][:, :-1], samples["masked"], alpha > 0
    documents = samples["documents"][:, :-1].tolist()
    if joint:
        noisy = [
            [MASK if hit else token for token, hit in zip(*row, strict=True)]
            for row in zip(samples["noisy_tokens"].tolist(), masked.tolist(), strict=True)
        ]
        streams = list(zip(documents, samples["blocks"].tolist(), samples["begins"].tolist(), strict=True))
        block = config.diffusion.block_size
        whole = [naive.clean_block_names(row[0], block) if "clean_ends" in samples else None for row in streams]
        masks = [
            naive.visibility_of_streams(*row, clean_blocks=names) for row, names in zip(streams, whole, strict=True)
        ]
        positions = [
            [naive.noisy_position(*row, index) for index in range(masked.shape[1])]
            + [naive.position_in_document(row[0], index) for index in range(clean.shape[1])]
            for row in streams
        ]
        logits = masked_logits(oracle, torch.cat([torch.tensor(noisy), clean], dim=1), masks, positions)
    else:
        logits = oracle_logits(oracle, clean, documents, config.diffusion.block_size, False)
    logits, first_clean = logits.double().log_softmax(-1), masked.shape[1] if joint else 0

    return naive.terms(
        averaging,
        samples["supervised"].tolist(),
        samples["maskable"].tolist(),
        masked.tolist() if joint else [[False] * masked.shape[1]] * len(clean),
        samples["probability"].tolist(),
        ar_nll=lambda n, i: -logits[n, first_clean + i, samples["tokens"][n, i + 1]],
        diffusion_nll=lambda n, i: -logits[n, i, samples["noisy_tokens"][n, i]],
    )


CASES = [
    pytest.param(seed, count, length, block, masking, marks=[pytest.mark.long] * (seed in (0, 3)))
    for seed, masking, count, length, block in (
        (0, "random", 4, 11, 4),
        (1, "random", 2, 24, 7),
        (2, "random", 3, 6, 1),
        (3, "random", 4, 20, 32),
        (4, "nothing", 2, 9, 3),
        (5, "everything", 4, 9, 5),
        (6, "random", 6, 1, 2),
    )
]


@pytest.mark.parametrize("averaging", AVERAGINGS)
@pytest.mark.parametrize(("seed", "count", "length", "block", "masking"), CASES)
def test_the_joint_loss_and_its_gradients_are_the_naive_ones(
    seed: int, count: int, length: int, block: int, masking: str, averaging: Any
) -> None:
    config = tiny_config(diffusion__block_size=block, model__num_hidden_layers=1, execution__head_chunk_rows=5)
    ours, theirs = pair(config)
    samples = random_samples(seed, count, length, masking, block)
    check(config, ours, theirs, samples, averaging, ALPHA, micro_size=1 + seed % 2 if count % 2 == 0 else 1)


@pytest.mark.parametrize("averaging", AVERAGINGS)
def test_the_ar_loss_and_its_gradients_are_the_naive_ones(averaging: Any) -> None:
    config = tiny_config()
    ours, theirs = pair(config)
    check(config, ours, theirs, random_samples(8, 4, 22), averaging, 0.0, micro_size=2)


@pytest.mark.parametrize("ar_weight", [0.0, 0.25])
@pytest.mark.parametrize("averaging", AVERAGINGS)
def test_the_ar_weight_is_in_the_gradients_and_not_in_the_terms(averaging: Any, ar_weight: float) -> None:
    config = tiny_config(diffusion__block_size=4, model__num_hidden_layers=1, execution__head_chunk_rows=5)
    ours, theirs = pair(config)
    check(config, ours, theirs, random_samples(10, 4, 11), averaging, ALPHA, 2, ar_weight)


@pytest.mark.parametrize(("seed", "block"), [(11, 4), (12, 7)])
def test_clean_tokens_may_see_their_whole_block(seed: int, block: int) -> None:
    """Both terms, the AR one too, which is then no loss of a prediction."""
    config = tiny_config(diffusion__block_size=block)
    ours, theirs = pair(config)
    samples = random_samples(seed, 4, 19, block=block)
    ends = [clean_block_ends(row[:-1], block) for row in samples["documents"].numpy()]
    samples["clean_ends"] = torch.from_numpy(np.stack(ends))
    check(config, ours, theirs, samples, "global", ALPHA, 2, ar_weight=0.5)


def test_without_masks_and_ar_weight_nothing_is_trained() -> None:
    config = tiny_config(diffusion__block_size=4, model__num_hidden_layers=1)
    ours, theirs = pair(config)
    check(config, ours, theirs, random_samples(4, 2, 9, "nothing"), "global", ALPHA, 1, ar_weight=0.0)


@pytest.mark.parametrize("micro_size", [1, 2, 3, 6])
def test_the_micro_batch_size_changes_nothing(micro_size: int) -> None:
    config = tiny_config(diffusion__block_size=5, model__num_hidden_layers=1)
    ours, theirs = pair(config)
    check(config, ours, theirs, random_samples(9, 6, 13, block=5), "global", ALPHA, micro_size)


def check(
    config: Config,
    ours: Any,
    theirs: Any,
    samples: Samples,
    averaging: Any,
    alpha: float,
    micro_size: int,
    ar_weight: float = 1.0,
) -> None:
    found = through_the_schedule(config, ours, samples, averaging, alpha, micro_size, ar_weight)
    expected = through_loops(config, theirs, samples, averaging, alpha)
    compare(config, ours, theirs, samples, found, expected, alpha, ar_weight)


def compare(
    config: Config,
    ours: Any,
    theirs: Any,
    samples: Samples,
    found: tuple[float, float],
    expected_terms: tuple[Any, Any],
    alpha: float,
    ar_weight: float = 1.0,
) -> None:
    """Both terms, and the gradients: those in our model, and of the expected terms through the oracle."""
    (ar, diffusion), (naive_ar, naive_diffusion) = found, expected_terms
    keys, rows = sum(samples[name].shape[1] for name in ("tokens", "masked")), samples["tokens"].numel()
    additions = forward_additions(config.model, keys) + rows
    assert ar == approx_to_rounding(float(torch.as_tensor(naive_ar).detach()), additions)
    assert diffusion == approx_to_rounding(float(torch.as_tensor(naive_diffusion).detach()), additions)
    loss = ar_weight * naive_ar + alpha * naive_diffusion
    if isinstance(loss, Tensor):
        loss.backward()
    gradients = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in theirs.named_parameters()
    }
    expected = in_megatron_layout(config.model, gradients)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    trained = ar_weight * samples["supervised"].sum() + samples["masked"].sum()
    assert scale > 0 or trained == 0
    for name, weight in ours.named_parameters():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert_close_to_rounding(gradient, expected[name], gradient_additions(config.model, keys, rows), scale=scale)
