"""The four averagings against naive sums, and the figures that the specification derives from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import naive
import numpy as np
import pytest
import torch
from torch import Tensor

from nld_train.config.schema import DiffusionConfig
from nld_train.losses.objective import (
    GlobalCounts,
    Terms,
    TermWeights,
    ar_row_weights,
    denominators,
    diffusion_row_weights,
    objective_terms,
)
from nld_train.masking.linear_schedule import LinearSchedule
from nld_train.masking.noise import draw_noise

LINEAR = LinearSchedule(1e-3)
PAPER = TermWeights(1.0, 0.3)
AVERAGINGS: tuple[Any, ...] = ("global", "contributing", "masked", "sequence")


@dataclass(frozen=True)
class Batch:
    """A whole global batch: bool and float tensors `[b, L]`, and a negative log-likelihood for each row."""

    supervised: Tensor
    maskable: Tensor
    masked: Tensor
    probability: Tensor
    ar_nll: Tensor
    diffusion_nll: Tensor

    @property
    def counts(self) -> GlobalCounts:
        sums = [int(flags.sum()) for flags in (self.supervised, self.maskable, self.masked)]
        return GlobalCounts(*sums, len(self.supervised))

    def part(self, rows: list[int]) -> Batch:
        return Batch(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def terms(self, averaging: Any, counts: GlobalCounts) -> Terms[Tensor]:
        """Through the code under test; `counts` may be those of a batch of which this is a part."""
        ar = ar_row_weights(averaging, counts, self.supervised)
        diffusion = diffusion_row_weights(averaging, counts, self.masked, self.probability, LINEAR)
        return objective_terms(
            self.ar_nll[self.supervised],
            ar[self.supervised],
            self.diffusion_nll[self.masked],
            diffusion[self.masked],
        )

    def naive_terms(self, averaging: str) -> tuple[Any, Any]:
        """Through plain loops, over numbers or over scalars that carry gradients."""
        flags = (self.supervised.tolist(), self.maskable.tolist(), self.masked.tolist(), self.probability.tolist())
        return naive.terms(
            averaging, *flags, lambda n, i: self.ar_nll[n, i].double(), lambda n, i: self.diffusion_nll[n, i].double()
        )


def flags(generator: torch.Generator, shape: tuple[int, int], kind: int) -> Tensor:
    """Nothing, everything, a random half, or a random half with empty sequences among them."""
    if kind < 2:
        return torch.full(shape, bool(kind))
    drawn = torch.rand(shape, generator=generator) < 0.5
    if kind == 3:
        drawn[torch.rand(shape[0], generator=generator) < 0.5] = False
    return drawn


def batch(seed: int, kinds: tuple[int, int, int] | None = None, one_level: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(torch.randint(1, 9, (2,), generator=generator).tolist())
    kinds = kinds or tuple(torch.randint(0, 4, (3,), generator=generator).tolist())
    maskable = flags(generator, shape, kinds[1])
    probability = torch.rand(shape, generator=generator) * 0.999 + 1e-3
    return Batch(
        supervised=flags(generator, shape, kinds[0]),
        maskable=maskable,
        masked=flags(generator, shape, kinds[2]) & maskable,
        probability=probability[:, :1].expand(shape) if one_level else probability,
        ar_nll=(torch.rand(shape, generator=generator) * 9).requires_grad_(),
        diffusion_nll=(torch.rand(shape, generator=generator) * 9).requires_grad_(),
    )


CASES = [batch(seed, one_level=bool(seed % 2)) for seed in range(40)]
EXTREMES = [
    batch(100 + seed, kinds) for seed, kinds in enumerate((a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1))
]


def number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


@pytest.mark.parametrize("averaging", AVERAGINGS)
@pytest.mark.parametrize("case", [*CASES, *EXTREMES], ids=lambda case: str(case.counts))
def test_terms_are_the_naive_sums(case: Batch, averaging: Any) -> None:
    terms = case.terms(averaging, case.counts)
    ar, diffusion = case.naive_terms(averaging)
    assert number(terms.ar) == pytest.approx(number(ar), rel=2e-6)
    assert number(terms.diffusion) == pytest.approx(number(diffusion), rel=2e-6)
    assert number(terms.loss(PAPER)) == pytest.approx(number(ar) + 0.3 * number(diffusion), rel=2e-6)


@pytest.mark.parametrize("averaging", AVERAGINGS)
@pytest.mark.parametrize("case", [*CASES[:20], *EXTREMES], ids=lambda case: str(case.counts))
def test_gradients_are_those_of_the_naive_sums(case: Batch, averaging: Any) -> None:
    leaves = [case.ar_nll, case.diffusion_nll]
    found = torch.autograd.grad(case.terms(averaging, case.counts).loss(PAPER), leaves, allow_unused=True)
    ar, diffusion = case.naive_terms(averaging)
    expected = (
        torch.autograd.grad(ar + 0.3 * diffusion, leaves, allow_unused=True)
        if isinstance(ar + diffusion, Tensor)
        else (None, None)
    )
    for got, wanted, leaf in zip(found, expected, leaves, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(zero if got is None else got, zero if wanted is None else wanted)


@pytest.mark.parametrize("averaging", AVERAGINGS)
@pytest.mark.parametrize("case", CASES[:20], ids=lambda case: str(case.counts))
def test_parts_of_a_global_batch_add_up(case: Batch, averaging: Any) -> None:
    """However a batch is cut into micro-batches and ranks, nothing is scaled by how many there are.

    Gradient accumulation: docs/method.md, "Known defects of public implementations".
    """
    whole = case.terms(averaging, case.counts).loss(PAPER)
    generator = np.random.default_rng(len(CASES))
    for parts in (1, 2, len(case.supervised)):
        owner = generator.integers(0, parts, len(case.supervised))
        pieces = [case.part(np.flatnonzero(owner == part).tolist()) for part in range(parts)]
        losses = [piece.terms(averaging, case.counts).loss(PAPER) for piece in pieces]
        torch.testing.assert_close(sum(losses), whole, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("averaging", AVERAGINGS)
def test_nothing_masked_and_nothing_supervised_is_a_finite_zero(averaging: Any) -> None:
    empty = batch(7, (0, 1, 0))
    terms = empty.terms(averaging, empty.counts)
    assert number(terms.ar) == 0
    assert number(terms.diffusion) == 0
    for weights in (
        ar_row_weights(averaging, empty.counts, empty.supervised),
        diffusion_row_weights(averaging, empty.counts, empty.masked, torch.zeros_like(empty.probability), LINEAR),
    ):
        assert not weights.any()
        assert weights.isfinite().all()


def test_a_sequence_without_rows_still_counts_in_the_mean_over_sequences() -> None:
    on = torch.tensor([[True, True], [False, False], [True, False]])
    counts = GlobalCounts(3, 6, 3, 3)
    assert ar_row_weights("sequence", counts, on).tolist() == pytest.approx(
        np.array([[1 / 6, 1 / 6], [0, 0], [1 / 3, 0]]), rel=1e-6
    )
    half = torch.full((3, 2), 0.5)
    assert diffusion_row_weights("sequence", counts, on, half, LINEAR).tolist() == pytest.approx(
        np.array([[1 / 3, 1 / 3], [0, 0], [2 / 3, 0]]), rel=1e-6
    )


def test_alpha_enters_once_and_only_the_diffusion_term() -> None:
    terms = Terms(ar=torch.tensor(2.0), diffusion=torch.tensor(5.0))
    assert [float(terms.loss(TermWeights(1.0, alpha))) for alpha in (0.0, 0.5, 1.0, 2.0)] == [2.0, 4.5, 7.0, 12.0]
    assert float(Terms(ar=torch.tensor(2.0), diffusion=None).loss(PAPER)) == 2.0


def test_the_ar_weight_enters_once_and_only_the_ar_term() -> None:
    terms = Terms(ar=torch.tensor(2.0), diffusion=torch.tensor(5.0))
    assert [float(terms.loss(TermWeights(weight, 0.5))) for weight in (0.0, 0.5, 1.0, 2.0)] == [2.5, 3.5, 4.5, 6.5]


def test_an_ar_stage_has_no_diffusion_term() -> None:
    nll, weights = torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5])
    terms = objective_terms(nll, weights)
    assert terms.diffusion is None
    assert float(terms.loss(TermWeights(1.0, 0.0))) == 2.0


def test_the_logged_denominators_are_the_tables() -> None:
    counts = GlobalCounts(ar_tokens=10, maskable_tokens=8, masked_tokens=3, sequences=2)
    found = {name: (denominators(name, counts).ar, denominators(name, counts).diffusion) for name in AVERAGINGS}
    assert found == {"global": (10, 8), "contributing": (13, 13), "masked": (10, 3), "sequence": (1, 1)}
    with pytest.raises(ValueError, match="is not one of global, contributing, masked, sequence"):
        denominators("mean", counts)


@pytest.mark.parametrize("averaging", AVERAGINGS)
def test_counts_beyond_float32_do_not_overflow(averaging: Any) -> None:
    counts = GlobalCounts(2**33, 2**33, 2**32, 2**20)
    on, half = torch.ones(1, 4, dtype=torch.bool), torch.full((1, 4), 0.5)
    weights = diffusion_row_weights(averaging, counts, on, half, LINEAR)
    assert weights.isfinite().all()
    assert (weights > 0).all()


# --- the figures of docs/method.md, "Averaging": constant cross-entropy, t ~ U(1e-3, 1), L = 4096 ---

_LENGTH, _SEQUENCES, _ALPHA = 4096, 4096, 0.3


@pytest.fixture(scope="module")
def masked_counts() -> tuple[Tensor, Tensor]:
    """Masked positions of one sequence at each of 4096 equally spaced levels, and the levels' probabilities."""
    settings = DiffusionConfig(block_size=64, epsilon=1e-3, levels="independent", level_scope="sequence")
    maskable, blocks = np.ones(_LENGTH, dtype=bool), np.zeros(_LENGTH, dtype=np.int64)
    levels = (np.arange(_SEQUENCES) + 0.5) / _SEQUENCES
    noises = [draw_noise(settings, 1, "joint", i, 1, maskable, blocks, level) for i, level in enumerate(levels)]
    return torch.tensor([noise.masked.sum() for noise in noises]), torch.tensor([n.probability[0] for n in noises])


def diffusion_of_each_sequence(averaging: Any, counts: GlobalCounts, masked: Tensor, probability: Tensor) -> Tensor:
    """The diffusion term of single sequences under a constant cross-entropy of 1: `[n]`.

    A weight depends on its position only through being masked, so it does not matter which ones are.
    """
    indices = torch.arange(_LENGTH)
    parts = [
        diffusion_row_weights(averaging, counts, indices < hit[:, None], p[:, None].expand(-1, _LENGTH), LINEAR).sum(
            dim=1
        )
        for hit, p in zip(masked.split(256), probability.split(256), strict=True)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize(
    ("averaging", "ratio", "tolerance"),
    [("global", 0.30, 0.002), ("contributing", 0.30, 0.002), ("masked", 0.60, 0.004), ("sequence", 2.07, 0.03)],
)
def test_the_weight_of_diffusion_beside_ar(
    masked_counts: tuple[Tensor, Tensor], averaging: Any, ratio: float, tolerance: float
) -> None:
    """Monte Carlo over masks, midpoint rule over levels (its error for the integral of 1/p is below 1 %)."""
    masked, probability = masked_counts
    everything = _LENGTH * _SEQUENCES
    counts = GlobalCounts(everything, everything, int(masked.sum()), _SEQUENCES)
    ar = float(ar_row_weights(averaging, counts, torch.ones(1, _LENGTH, dtype=torch.bool)).sum()) * _SEQUENCES
    diffusion = float(diffusion_of_each_sequence(averaging, counts, masked, probability).sum())
    assert _ALPHA * diffusion / ar == pytest.approx(ratio, abs=tolerance)


@pytest.mark.parametrize(("averaging", "spread"), [("global", 0.04), ("sequence", 31.0)])
def test_the_spread_of_one_sequences_diffusion_term(
    masked_counts: tuple[Tensor, Tensor], averaging: Any, spread: float
) -> None:
    alone = GlobalCounts(_LENGTH, _LENGTH, 1, 1)  # neither averaging divides by the masked positions of the batch
    terms = diffusion_of_each_sequence(averaging, alone, *masked_counts)
    assert float(terms.std()) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("level", [0.05, 0.3, 0.7, 1.0])
def test_the_scale_of_the_loss_does_not_depend_on_the_level(level: float) -> None:
    """Under `global`, the expected diffusion term is the plain mean at every noise level."""
    settings = DiffusionConfig(block_size=64, epsilon=1e-3, levels="independent", level_scope="sequence")
    maskable, blocks = np.ones(256, dtype=bool), np.zeros(256, dtype=np.int64)
    draws = [draw_noise(settings, 1, "joint", i, 1, maskable, blocks, level) for i in range(400)]
    masked = torch.from_numpy(np.array([draw.masked for draw in draws]))
    probability = torch.from_numpy(np.array([draw.probability for draw in draws]))
    counts = GlobalCounts(masked.numel(), masked.numel(), int(masked.sum()), len(draws))
    total = float(diffusion_row_weights("global", counts, masked, probability, LINEAR).sum())
    p = (1 - 1e-3) * level + 1e-3
    assert total == pytest.approx(1.0, abs=4 * math.sqrt((1 - p) / p / masked.numel()) + 1e-5)
