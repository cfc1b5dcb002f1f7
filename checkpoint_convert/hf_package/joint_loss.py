"""The joint loss in the conventions of `transformers`' Trainer.

Labels of -100, a torch generator for the noise, and the number of labels of the whole optimizer step. Objective and
noise schedule are those of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoint_convert.hf_package.padded_text import PaddedText
from nld_train.losses.objective import GlobalCounts, ar_row_weights, diffusion_row_weights, objective_terms
from nld_train.masking.linear_schedule import LinearSchedule

IGNORED = -100
SCHEDULE = LinearSchedule(epsilon=1e-3)
# The mean over all tokens of the batch (docs/method.md, "Averaging").
_AVERAGING = "global"


@dataclass(frozen=True)
class Noise:
    """Masked positions bool `[b, L]` and the probability float32 `[b, 1]` with which each sequence was masked."""

    masked: Tensor
    probability: Tensor


def draw_noise(maskable: Tensor, generator: torch.Generator | None) -> Noise:
    """Draws a level `t ~ U(0, 1)` per sequence; each maskable position is masked with the schedule's probability p(t).

    Args:
        maskable: bool `[b, L]`.
        generator: a CPU generator. None seeds one from torch's global generator and the rank, because trainers seed all
            ranks alike and their noise must differ.
    """
    if generator is None:
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if grouped else 0
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))) + rank)
    probability = SCHEDULE.probability(torch.rand(len(maskable), 1, generator=generator))
    drawn = torch.rand(maskable.shape, generator=generator) < probability
    return Noise(maskable & drawn.to(maskable.device), probability.to(maskable.device))


@dataclass(frozen=True)
class TermWeights:
    """Weights of the two terms: `ar * L_AR + diffusion * L_diff`."""

    ar: float
    diffusion: float


def joint_loss(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    clean_logits: Tensor,
    labels: Tensor,
    text: PaddedText,
    noise: Noise | None,
    weights: TermWeights,
    step_tokens: Tensor | int | None = None,
) -> Tensor:
    """The objective of a batch, with `global` averaging.

    Args:
        head: hidden states to logits.
        hidden: `[b, S, h]`; with noise the first L positions are the noisy stream.
        clean_logits: `[b, L, V]`.
        labels: int64 `[b, L]`, the tokens themselves; -100 is neither predicted nor masked.
        text: of the clean stream.
        noise: None without the diffusion term.
        weights: of the two terms.
        step_tokens: number of labels other than -100 in the whole optimizer step, if it has other micro-batches or
            ranks (`num_items_in_batch` of `Trainer`). The ratio of next-token rows to labels is assumed to be the same
            in the whole step as here.
    """
    maskable = (labels != IGNORED) & text.real
    documents = text.layout.documents
    supervised = maskable[:, 1:] & text.real[:, :-1] & (documents[:, 1:] == documents[:, :-1])
    masked_tokens = 0 if noise is None else int(noise.masked.sum())
    counts = GlobalCounts(int(supervised.sum()), int(maskable.sum()), masked_tokens, len(labels))
    ar_weights = weights.ar * ar_row_weights(_AVERAGING, counts, supervised)[supervised]
    ar_nll = _nll(clean_logits[:, :-1][supervised], labels[:, 1:][supervised])
    diffusion_nll = diffusion_weights = None
    if noise is not None:
        probability = noise.probability.expand_as(labels)
        diffusion_weights = diffusion_row_weights(_AVERAGING, counts, noise.masked, probability, SCHEDULE)[noise.masked]
        diffusion_nll = _nll(head(hidden[:, : labels.shape[1]][noise.masked]), labels[noise.masked])
    loss = objective_terms(ar_nll, ar_weights, diffusion_nll, diffusion_weights).loss(weights.diffusion)
    if step_tokens is None:
        return loss
    return loss * (maskable.sum() / torch.as_tensor(step_tokens, device=labels.device))


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    """float32 `[n]`, in nats."""
    return F.cross_entropy(logits.float(), targets, reduction="none")
