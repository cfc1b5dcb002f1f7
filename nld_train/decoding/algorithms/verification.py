"""Which drafts hold: the longest prefix that the AR predictions confirm, and the AR token after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.decoding.algorithms.sampling import Sampler, pick


@dataclass(frozen=True)
class Drafts:
    """Draft tokens of each row and what they were drawn from.

    Attributes:
        tokens: int64 `[a, T]` on the CPU; column 0 comes from the AR head and always holds.
        sizes: int64 `[a]` on the CPU, real tokens of each row, at least 1.
        logits: float32 `[a, T, V]`, what each token was drawn from; column 0 is not read. None with T = 1.
    """

    tokens: Tensor
    sizes: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Blend:
    """Part of another distribution in the token after the accepted drafts (quadratic self-speculation with w < 1).

    Attributes:
        ar_weight: w, the share of the AR prediction.
        logits: from int64 `[a]`, the accepted drafts of each row, to float32 `[a, V]`, the other prediction after them.
    """

    ar_weight: float
    logits: Callable[[Tensor], Tensor]


def verify(sampler: Sampler, drafts: Drafts, verdicts: Tensor, blend: Blend | None = None) -> tuple[Tensor, Tensor]:
    """Accepts drafts and finds the token after them.

    Greedily, a draft holds if it is the AR argmax; the output is the AR output, token for token. With a temperature, a
    draft x from q holds with probability min(1, p(x) / q(x)), and the token after a refused one is drawn from
    max(p - q, 0): the output is distributed as AR sampling (Leviathan et al. 2023, arXiv 2211.17192).

    Args:
        sampler: draws for these rows.
        drafts: `[a, T]` of them.
        verdicts: float32 `[a, T, V]`, AR logits after draft j given the drafts up to it.
        blend: mixes into the token after the accepted drafts.

    Returns:
        int64 `[a]` accepted drafts after column 0, and int64 `[a]` the tokens after them.
    """
    rows = torch.arange(len(drafts.tokens))
    tested = torch.arange(1, drafts.tokens.shape[1]) < drafts.sizes[:, None]
    if sampler.greedy:
        held = verdicts[:, :-1].argmax(-1).cpu() == drafts.tokens[:, 1:]
    else:
        p = sampler.distribution(verdicts)
        q = p if drafts.logits is None else sampler.distribution(drafts.logits)
        held = sampler.uniform(tested) * _of(drafts.tokens[:, 1:], q[:, 1:]) < _of(drafts.tokens[:, 1:], p[:, :-1])
    accepted = (held & tested).to(torch.int64).cumprod(1).sum(1)
    if sampler.greedy and blend is None:
        return accepted, verdicts[rows, accepted].argmax(-1).cpu()
    following = sampler.distribution(verdicts[rows, accepted])
    if not sampler.greedy:
        refused = accepted < drafts.sizes - 1
        following = _residual(following, q[rows, (accepted + 1).clamp(max=q.shape[1] - 1)], refused)
    if blend is not None:
        other = blend.logits(accepted)
        following = _blended(sampler, verdicts[rows, accepted], following, other, blend.ar_weight)
    if sampler.greedy:
        return accepted, following.argmax(-1).cpu()
    return accepted, pick(following, sampler.uniform(torch.ones(len(rows), 1, dtype=torch.bool))[:, 0])


def _of(tokens: Tensor, probabilities: Tensor) -> Tensor:
    """Probability of each token: float64 on the CPU."""
    return probabilities.gather(-1, tokens.to(probabilities.device).unsqueeze(-1)).squeeze(-1).double().cpu()


def _residual(p: Tensor, q: Tensor, refused: Tensor) -> Tensor:
    """`max(p - q, 0)`, normalised, in the rows where a draft from q was refused; p in the others: `[a, V]`."""
    rest = (p - q).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    # Where p equals q but for rounding, a refusal is all but impossible and p is as good an answer.
    usable = refused.to(p.device).unsqueeze(-1) & (total > 0)
    return torch.where(usable, rest / total.clamp(min=torch.finfo(p.dtype).tiny), p)


def _blended(sampler: Sampler, verdict: Tensor, following: Tensor, other: Tensor, ar_weight: float) -> Tensor:
    """`w * AR + (1 - w) * diffusion` in probabilities; greedily of the whole softmax, so that certainty counts."""
    if sampler.greedy:
        return ar_weight * verdict.softmax(-1) + (1 - ar_weight) * other.softmax(-1)
    return ar_weight * following + (1 - ar_weight) * sampler.distribution(other)
