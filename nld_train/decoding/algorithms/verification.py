"""Verification: the longest prefix of drafts that the target logits accept, and the bonus token after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.decoding.algorithms.sampling import Shaping, pick


@dataclass(frozen=True)
class Drafts:
    """Draft tokens of each sequence and the logits they were sampled from.

    Attributes:
        tokens: int64 `[a, T]`; column 0 comes from the AR head and needs no verification.
        sizes: int64 `[a]`, real tokens of each sequence, at least 1.
        logits: float32 `[a, T, V]`, from which each token was sampled; column 0 is unused. None if T = 1.
    """

    tokens: Tensor
    sizes: Tensor
    logits: Tensor | None


def block_masks(sizes: Tensor, length: int) -> Tensor:
    """The drafts of blocks of int64 `[a]` sizes, whose column 0 comes from the AR head: bool `[a, T]`."""
    drafts = torch.arange(length, device=sizes.device) < sizes[:, None]
    drafts[:, 0] = False
    return drafts


def needed_numbers(sizes: Tensor, length: int) -> Tensor:
    """Which random numbers a verification needs: bool `[a, T]`, one for each draft, then that of the bonus token."""
    needed = torch.arange(1, length + 1) < sizes[:, None]
    needed[:, -1] = True
    return needed


def verify(
    shaping: Shaping, drafts: Drafts, target_logits: Tensor, numbers: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Accepts drafts and finds the bonus token after them.

    Greedily, a draft is accepted if it is the argmax of the target logits; the output is that of the target, token for
    token. With a temperature, a draft x from q is accepted with probability min(1, p(x) / q(x)), and the token after a
    rejected one is drawn from max(p - q, 0): the output is distributed as samples of the target (Leviathan et al. 2023,
    arXiv 2211.17192).

    Args:
        shaping: of both distributions.
        drafts: `[a, T]`.
        target_logits: float32 `[a, T, V]`, of the target: the AR mode, or an ensemble (`mixed_logits`); row j is
            conditioned on drafts 0..j.
        numbers: float64 `[a, T]`, random numbers for `needed_numbers`; None where greedy.

    Returns:
        int64 `[a]` accepted drafts after column 0, and int64 `[a]` the bonus tokens, on the device of the drafts.
    """
    tokens, device = drafts.tokens, drafts.tokens.device
    rows = torch.arange(len(tokens), device=device)
    tested = torch.arange(1, tokens.shape[1], device=device) < drafts.sizes[:, None]
    if numbers is None:
        best = target_logits.argmax(-1).to(device)
        accepted = _accepted((best[:, :-1] == tokens[:, 1:]) & tested)
        return accepted, best[rows, accepted]
    p = shaping.distribution(target_logits)
    q = p if drafts.logits is None else shaping.distribution(drafts.logits)
    accepted = _accepted((numbers[:, :-1] * _of(tokens[:, 1:], q[:, 1:]) < _of(tokens[:, 1:], p[:, :-1])) & tested)
    rejected = accepted < drafts.sizes - 1
    bonus = _residual(p[rows, accepted], q[rows, (accepted + 1).clamp(max=q.shape[1] - 1)], rejected)
    return accepted, pick(bonus, numbers[:, -1].to(bonus.device)).to(device)


def _accepted(passed: Tensor) -> Tensor:
    """int64 `[a]`, the drafts before the first one that did not pass, of bool `[a, T - 1]`."""
    return passed.to(torch.int64).cumprod(1).sum(1)


def _of(tokens: Tensor, probabilities: Tensor) -> Tensor:
    """Probability of each token: float64, on the device of the tokens."""
    return (
        probabilities.gather(-1, tokens.to(probabilities.device).unsqueeze(-1)).squeeze(-1).double().to(tokens.device)
    )


def _residual(p: Tensor, q: Tensor, rejected: Tensor) -> Tensor:
    """`max(p - q, 0)`, normalised, in the rows where a draft from q was rejected; p in the others: `[a, V]`."""
    rest = (p - q).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    # If p equals q up to rounding, a rejection is all but impossible, and p is used.
    usable = rejected.to(p.device).unsqueeze(-1) & (total > 0)
    return torch.where(usable, rest / total.clamp(min=torch.finfo(p.dtype).tiny), p)


def mixed_logits(ar_logits: Tensor, diffusion_logits: Tensor, ar_weight: float) -> Tensor:
    """Logits `[..., V]` of the ensemble `w * p_AR + (1 - w) * p_diff`, a mixture of probabilities.

    A temperature, top-k and top-p apply to the mixture.

    Source: arXiv 2607.05722, Appendix C.
    """
    return torch.log(ar_weight * ar_logits.softmax(-1) + (1 - ar_weight) * diffusion_logits.softmax(-1))
