"""The joint loss in the conventions of `transformers`' Trainer.

Labels of -100, a torch generator for the noise, and the number of labels of the whole optimizer step. Objective and
noise schedule are those of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoint_convert.hf_package.padded_text import AnswerBlocks, NoisyText, PaddedText
from nld_train.losses.objective import GlobalCounts, TermWeights, ar_row_weights, diffusion_row_weights, objective_terms
from nld_train.masking.linear_schedule import LinearSchedule

IGNORED = -100
SCHEDULE = LinearSchedule(epsilon=1e-3)
# The mean over all tokens of the batch (docs/method.md, "Averaging").
_AVERAGING = "global"


@dataclass(frozen=True)
class Noise:
    """Masked positions bool `[b, N]` and the probability float32 `[b, 1]` with which each sequence was masked."""

    masked: Tensor
    probability: Tensor


@dataclass(frozen=True)
class NoisyRows:
    """The noisy streams of a batch under noise.

    Attributes:
        text: both streams.
        tokens: int64 `[b, N]`, the tokens that the noisy streams hide, and their targets.
        maskable: bool `[b, N]`.
        noise: on them.
    """

    text: PaddedText
    tokens: Tensor
    maskable: Tensor
    noise: Noise

    @classmethod
    def of(
        cls,
        input_ids: Tensor,
        labels: Tensor,
        text: PaddedText,
        settings: AnswerBlocks,
        end_ids: tuple[int, ...],
        turn_ends: tuple[int, ...],
        generator: torch.Generator | None,
    ) -> NoisyRows:
        """The noisy streams of a batch under fresh noise.

        Where no token has a label of -100 these are whole texts, with fill after documents that end with an end token.
        Otherwise they are conversations: the noisy streams have the blocks of answers alone, whose tokens are those
        with labels.

        Args:
            input_ids: int64 `[b, L]`.
            labels: int64 `[b, L]`, -100 for prompts and padding.
            text: of the clean stream.
            settings: of the blocks; for whole texts only their size applies.
            end_ids: end tokens of the model; the fill of answers is the first one.
            turn_ends: tokens that end an answer as well.
            generator: as of `draw_noise`.
        """
        answers = labels != IGNORED
        whole = bool((answers | ~text.real).all())
        if settings.clean_blocks:
            text = text.with_whole_blocks(settings.size, None if whole or settings.blocks == "document" else answers)
        if whole:
            noisy = NoisyText.of(text, settings.size, _are(input_ids, end_ids) & _last(text))
            tokens = noisy.last_values(input_ids)
        else:
            settings = settings if end_ids else replace(settings, fill=False)
            noisy = NoisyText.of_answers(text, answers, _are(input_ids, (*end_ids, *turn_ends)), settings)
            tokens = noisy.tokens(input_ids, next(iter(end_ids), 0))
        return cls(noisy.text, tokens, noisy.maskable, draw_noise(noisy.maskable, generator))


def _are(tokens: Tensor, ids: tuple[int, ...]) -> Tensor:
    """Bool, which tokens are one of some ids."""
    return torch.isin(tokens, torch.tensor(ids, device=tokens.device))


def _last(text: PaddedText) -> Tensor:
    """Bool `[b, L]`: the last tokens of documents."""
    last = torch.ones_like(text.real)
    last[:, :-1] = ~text.real[:, 1:] | (text.layout.documents[:, 1:] != text.layout.documents[:, :-1])
    return last & text.real


def draw_noise(maskable: Tensor, generator: torch.Generator | None) -> Noise:
    """Draws a level `t ~ U(0, 1)` per sequence; each maskable position is masked with the schedule's probability p(t).

    Args:
        maskable: bool `[b, N]`.
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


def term_weights(ar: float | None, diffusion: float | None) -> TermWeights:
    """The weights of a configuration, where None is 1."""
    return TermWeights(*(1.0 if weight is None else weight for weight in (ar, diffusion)))


def joint_loss(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    clean_logits: Tensor,
    labels: Tensor,
    text: PaddedText,
    noisy: NoisyRows | None,
    weights: TermWeights,
    step_tokens: Tensor | int | None = None,
) -> Tensor:
    """The objective of a batch, with `global` averaging.

    Args:
        head: hidden states to logits.
        hidden: `[b, S, h]`; with noise the first N positions are the noisy stream.
        clean_logits: `[b, L, V]`.
        labels: int64 `[b, L]`, the tokens themselves; -100 is not predicted.
        text: of the clean stream.
        noisy: None without the diffusion term.
        weights: of the two terms.
        step_tokens: number of labels other than -100 in the whole optimizer step, if it has other micro-batches or
            ranks (`num_items_in_batch` of `Trainer`). The ratios of next-token rows and of maskable positions to labels
            are assumed to be the same in the whole step as here.
    """
    labelled = (labels != IGNORED) & text.real
    documents = text.layout.documents
    supervised = labelled[:, 1:] & text.real[:, :-1] & (documents[:, 1:] == documents[:, :-1])
    maskable_tokens, masked_tokens = (
        (0, 0) if noisy is None else (int(noisy.maskable.sum()), int(noisy.noise.masked.sum()))
    )
    counts = GlobalCounts(int(supervised.sum()), maskable_tokens, masked_tokens, len(labels))
    ar_weights = ar_row_weights(_AVERAGING, counts, supervised)[supervised]
    ar_nll = _nll(clean_logits[:, :-1][supervised], labels[:, 1:][supervised])
    diffusion_nll = diffusion_weights = None
    if noisy is not None:
        masked = noisy.noise.masked
        probability = noisy.noise.probability.expand_as(masked)
        diffusion_weights = diffusion_row_weights(_AVERAGING, counts, masked, probability, SCHEDULE)[masked]
        diffusion_nll = _nll(head(hidden[:, : masked.shape[1]][masked]), noisy.tokens[masked])
    loss = objective_terms(ar_nll, ar_weights, diffusion_nll, diffusion_weights).loss(weights)
    if step_tokens is None:
        return loss
    return loss * (labelled.sum() / torch.as_tensor(step_tokens, device=labels.device))


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    """float32 `[n]`, in nats."""
    return F.cross_entropy(logits.float(), targets, reduction="none")
