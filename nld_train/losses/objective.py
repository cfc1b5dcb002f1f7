"""The joint objective `L = L_AR + alpha * L_diff` and its four averagings.

See arXiv 2607.05722, Eq. 3 to 5, and docs/method.md, "Objective" and "Averaging".

This file and the loss weight of the noise schedule (`masking.schedule`) decide *what* is optimised, in training and in
the exported model. The negative log-likelihood of a row enters the loss through one number, its weight:

    L = sum over rows of weight(row) * NLL(row)

AR rows are the clean stream's next-token predictions. Diffusion rows are the masked positions of the noisy stream: they
predict the clean token at the same position and carry the factor alpha and the loss weight of the noise schedule, 1 / p
for the linear one. An averaging defines what the sums are divided by. All counts run over the whole global batch, every
data-parallel rank and every micro-batch of the optimizer step, so that gradients are summed without further division.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nld_train.masking.schedule import NoiseSchedule

Term = TypeVar("Term", Tensor, float)


@dataclass(frozen=True)
class GlobalCounts:
    """Row counts of one optimizer step, over the whole global batch.

    Attributes:
        ar_tokens: N_ar, supervised next-token rows.
        maskable_tokens: N, positions that the noise could have masked.
        masked_tokens: M, positions that it did mask.
        sequences: number of samples.
    """

    ar_tokens: int
    maskable_tokens: int
    masked_tokens: int
    sequences: int


@dataclass(frozen=True)
class Denominators:
    """The divisors of the two sums; both are 1 under `sequence`, whose divisors differ from row to row."""

    ar: float
    diffusion: float


def denominators(averaging: str, counts: GlobalCounts) -> Denominators:
    """The divisors of `sum CE_ar` and of `sum CE/p` (docs/method.md, "Averaging").

    Raises:
        ValueError: an unknown averaging.
    """
    if averaging == "global":
        return Denominators(counts.ar_tokens, counts.maskable_tokens)
    if averaging == "contributing":
        contributing = counts.ar_tokens + counts.masked_tokens
        return Denominators(contributing, contributing)
    if averaging == "masked":
        return Denominators(counts.ar_tokens, counts.masked_tokens)
    if averaging == "sequence":
        return Denominators(1.0, 1.0)
    raise ValueError(f"averaging: {averaging!r} is not one of global, contributing, masked, sequence")


def ar_row_shares(averaging: str, sequences: int, supervised: Tensor) -> Tensor:
    """Share of every AR row in the loss: its weight before the division by `Denominators.ar`.

    Args:
        averaging: which mean, see `denominators`.
        sequences: samples of the whole optimizer step.
        supervised: bool `[b, L]`, rows whose next token is a target.

    Returns:
        float32 `[b, L]`, zero where nothing is supervised.
    """
    selected = supervised.float()
    if averaging == "sequence":
        return _divide(selected, selected.sum(dim=1, keepdim=True) * sequences)
    return selected


def diffusion_row_shares(
    averaging: str, sequences: int, masked: Tensor, probability: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """Share of every noisy position in `L_diff`: its weight before the division by `Denominators.diffusion`.

    Args:
        averaging: which mean, see `denominators`.
        sequences: samples of the whole optimizer step.
        masked: bool `[b, L]`.
        probability: float32 `[b, L]`, the masking probability p of each position.
        schedule: gives the loss weight of p.

    Returns:
        float32 `[b, L]`, zero where nothing is masked.
    """
    selected = torch.where(masked, schedule.loss_weight(probability.float()), 0.0)
    if averaging == "sequence":
        return _divide(selected, masked.sum(dim=1, keepdim=True).float() * sequences)
    return selected


def row_weights(shares: Tensor, denominator: float) -> Tensor:
    """Weights in the loss of rows with these shares, on their device; 0 for a denominator of 0."""
    return shares / denominator if denominator > 0 else torch.zeros_like(shares)


def ar_row_weights(averaging: str, counts: GlobalCounts, supervised: Tensor) -> Tensor:
    """Weight of every AR row in the loss.

    Args:
        averaging: which mean, see `denominators`.
        counts: rows of the whole optimizer step.
        supervised: bool `[b, L]`, rows whose next token is a target.

    Returns:
        float32 `[b, L]`, zero where nothing is supervised.
    """
    shares = ar_row_shares(averaging, counts.sequences, supervised)
    return row_weights(shares, denominators(averaging, counts).ar)


def diffusion_row_weights(
    averaging: str, counts: GlobalCounts, masked: Tensor, probability: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """Weight of every noisy position in `L_diff`, without alpha: the loss weight of masked positions, averaged.

    Args:
        averaging: which mean, see `denominators`.
        counts: rows of the whole optimizer step.
        masked: bool `[b, L]`.
        probability: float32 `[b, L]`, the masking probability p of each position.
        schedule: gives the loss weight of p.

    Returns:
        float32 `[b, L]`, zero where nothing is masked.
    """
    shares = diffusion_row_shares(averaging, counts.sequences, masked, probability, schedule)
    return row_weights(shares, denominators(averaging, counts).diffusion)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient, with 0/0 = 0: an empty sum over a zero count is 0 (docs/method.md, "Averaging")."""
    return torch.where(denominator > 0, numerator / denominator.clamp(min=1e-30), 0.0)


@dataclass(frozen=True)
class TermWeights:
    """Weights of the two terms in the loss.

    Attributes:
        ar: of L_AR. 1 in the paper's objective, 0 in its ablations without an AR loss (Table 1, Figure 4).
        diffusion: alpha, of L_diff.
    """

    ar: float
    diffusion: float


@dataclass(frozen=True)
class Terms(Generic[Term]):
    """Both raw terms of the objective, summed over micro-batches and ranks.

    Attributes:
        ar: L_AR: a scalar tensor in the forward pass, a number for a whole step.
        diffusion: L_diff, without alpha; None without a noisy stream.
    """

    ar: Term
    diffusion: Term | None

    def loss(self, weights: TermWeights) -> Term:
        """`L_AR + alpha * L_diff`, with another weight of L_AR than 1 where an ablation has it."""
        ar = self.ar if weights.ar == 1 else weights.ar * self.ar
        return ar if self.diffusion is None else ar + weights.diffusion * self.diffusion


def objective_terms(
    ar_nll: Tensor, ar_weights: Tensor, diffusion_nll: Tensor | None = None, diffusion_weights: Tensor | None = None
) -> Terms[Tensor]:
    """Weighted sums of negative log-likelihoods: this micro-batch's part of the globally averaged terms.

    Args:
        ar_nll: float32 `[n_ar]` of the supervised rows.
        ar_weights: float32 `[n_ar]`, their weights.
        diffusion_nll: float32 `[n_masked]`, or None in an AR stage.
        diffusion_weights: float32 `[n_masked]`.
    """
    ar = (ar_nll * ar_weights).sum()
    if diffusion_nll is None or diffusion_weights is None:
        return Terms(ar=ar, diffusion=None)
    return Terms(ar=ar, diffusion=(diffusion_nll * diffusion_weights).sum())
