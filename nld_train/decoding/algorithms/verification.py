"""Verification: the longest prefix of drafts that the target logits accept, and the bonus token after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.decoding.algorithms.sampling import TokenSampling, pick


@dataclass(frozen=True)
class Drafts:
    """Draft tokens of each sequence and the logits they were sampled from.

    Attributes:
        tokens: int64 `[a, T]` on the CPU; column 0 comes from the AR head and needs no verification.
        sizes: int64 `[a]` on the CPU, real tokens of each sequence, at least 1.
        logits: float32 `[a, T, V]`, from which each token was sampled; column 0 is unused. None if T = 1.
    """

    tokens: Tensor
    sizes: Tensor
    logits: Tensor | None


def verify(sampling: TokenSampling, drafts: Drafts, target_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Accepts drafts and finds the bonus token after them.

    Greedily, a draft is accepted if it is the argmax of the target logits; the output is that of the target, token for
    token. With a temperature, a draft x from q is accepted with probability min(1, p(x) / q(x)), and the token after a
    rejected one is drawn from max(p - q, 0): the output is distributed as samples of the target (Leviathan et al. 2023,
    arXiv 2211.17192).

    Args:
        sampling: for these sequences.
        drafts: `[a, T]`.
        target_logits: float32 `[a, T, V]`, of the target: the AR mode, or an ensemble (`mixed_logits`); row j is
            conditioned on drafts 0..j.

    Returns:
        int64 `[a]` accepted drafts after column 0, and int64 `[a]` the bonus tokens.
    """
    rows = torch.arange(len(drafts.tokens))
    tested = torch.arange(1, drafts.tokens.shape[1]) < drafts.sizes[:, None]
    if sampling.greedy:
        passed = target_logits[:, :-1].argmax(-1).cpu() == drafts.tokens[:, 1:]
    else:
        p = sampling.distribution(target_logits)
        q = p if drafts.logits is None else sampling.distribution(drafts.logits)
        passed = sampling.uniform(tested) * _of(drafts.tokens[:, 1:], q[:, 1:]) < _of(drafts.tokens[:, 1:], p[:, :-1])
    accepted = (passed & tested).to(torch.int64).cumprod(1).sum(1)
    if sampling.greedy:
        return accepted, target_logits[rows, accepted].argmax(-1).cpu()
    rejected = accepted < drafts.sizes - 1
    bonus = _residual(p[rows, accepted], q[rows, (accepted + 1).clamp(max=q.shape[1] - 1)], rejected)
    return accepted, pick(bonus, sampling.uniform(torch.ones(len(rows), 1, dtype=torch.bool))[:, 0])


def _of(tokens: Tensor, probabilities: Tensor) -> Tensor:
    """Probability of each token: float64 on the CPU."""
    return probabilities.gather(-1, tokens.to(probabilities.device).unsqueeze(-1)).squeeze(-1).double().cpu()


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
