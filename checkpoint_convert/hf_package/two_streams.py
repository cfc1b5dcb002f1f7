"""Training: the joint loss of next-token prediction and block diffusion, from one forward over two streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoint_convert.hf_package.attention import Rule

IGNORED = -100
EPSILON = 1e-3


@dataclass(frozen=True)
class Text:
    """Where the tokens of a batch stand; tensors `[b, L]` on the model's device.

    Attributes:
        real: bool, False for padding.
        positions: int64, position in the document.
        documents: int64, document of each token. Position ids that do not go on by one start a new document, so that
            several can be packed in a row.
        blocks: int64, block of each token, counted from its document's start.
    """

    real: Tensor
    positions: Tensor
    documents: Tensor
    blocks: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor | None, position_ids: Tensor | None, tokens: Tensor, block_size: int) -> Text:
        """From what `forward` is given: `tokens` is `[b, L]`, both masks are like it or None."""
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if position_ids is None:
            positions = (real.long().cumsum(1) - 1).clamp(min=0)
            documents = torch.zeros_like(positions)
            index = positions
        else:
            positions = position_ids.expand_as(tokens)
            starts = F.pad(positions[:, 1:] != positions[:, :-1] + 1, (1, 0), value=True)
            place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
            documents = starts.long().cumsum(1) - 1
            index = place - torch.where(starts, place, 0).cummax(1).values
        return cls(real, positions, documents, index // block_size)

    @property
    def plain(self) -> bool:
        """No padding and no document borders."""
        return bool(self.real.all()) and not bool(self.documents.any())

    def stacked(self) -> Text:
        """The same tokens twice, for `[noisy | clean]`: `[b, 2L]`."""
        return Text(*(torch.cat([field] * 2, 1) for field in (self.real, self.positions, self.documents, self.blocks)))


def causal_rule(text: Text) -> Rule:
    """Each token sees its document up to itself."""

    def rule(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = text.documents[row, query] == text.documents[row, key]
        return (same & (key <= query) & text.real[row, key]) | (query == key)

    return rule


def two_stream_rule(text: Text) -> Rule:
    """Visibility over `[noisy | clean]`: noisy sees its own noisy block in both directions and the clean tokens of
    earlier blocks; clean sees clean, causally."""
    length, twice = text.real.shape[1], text.stacked()

    def rule(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (twice.documents[row, query] == twice.documents[row, key]) & twice.real[row, key]
        query_block, key_block = twice.blocks[row, query], twice.blocks[row, key]
        noisy_query, noisy_key = query < length, key < length
        inside = noisy_query & noisy_key & (query_block == key_block)
        earlier = noisy_query & ~noisy_key & (key_block < query_block)
        causal = ~noisy_query & ~noisy_key & (key <= query)
        return (same & (inside | earlier | causal)) | (query == key)

    return rule


def last_block_rule(text: Text, block_length: int) -> Rule:
    """The last `block_length` real tokens of each row see its whole document, the tokens before them see causally."""
    from_end = text.real.long().flip(1).cumsum(1).flip(1)
    causal, in_block = causal_rule(text), from_end <= block_length

    def rule(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (text.documents[row, query] == text.documents[row, key]) & text.real[row, key]
        return causal(row, query, key) | (same & in_block[row, query])

    return rule


@dataclass(frozen=True)
class Noise:
    """Masked positions bool `[b, L]` and the probability float32 `[b, 1]` with which each sequence was masked."""

    masked: Tensor
    probability: Tensor


def draw_noise(maskable: Tensor, generator: torch.Generator | None) -> Noise:
    """A level `t ~ U(0, 1)` per sequence, `p = (1 - eps) t + eps`; each maskable position is masked with probability p.

    Args:
        maskable: bool `[b, L]`.
        generator: a CPU generator. Without one the global one is used; ranks of a process group, which trainers give
            the same seed, draw apart all the same.
    """
    if generator is None:
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if grouped else 0
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))) + rank)
    probability = (1 - EPSILON) * torch.rand(len(maskable), 1, generator=generator) + EPSILON
    hit = torch.rand(maskable.shape, generator=generator) < probability
    return Noise(maskable & hit.to(maskable.device), probability.to(maskable.device))


@dataclass(frozen=True)
class Weights:
    """Weights of the two terms: `ar * L_AR + diffusion * L_diff`."""

    ar: float
    diffusion: float


def joint_loss(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    clean_logits: Tensor,
    labels: Tensor,
    text: Text,
    noise: Noise | None,
    weights: Weights,
    step_tokens: Tensor | int | None = None,
) -> Tensor:
    """`L_AR + alpha * L_diff` with the mean over all tokens of the batch (`global` averaging).

    Args:
        head: hidden states to logits.
        hidden: `[b, S, h]`; its first L places are the noisy stream, if there is noise.
        clean_logits: `[b, L, V]`.
        labels: int64 `[b, L]`, the tokens themselves; -100 is neither predicted nor masked.
        text: of the clean stream.
        noise: None without the diffusion term.
        weights: of the two terms.
        step_tokens: labels other than -100 in the whole optimizer step, if it has more micro-batches or ranks than
            this one (`num_items_in_batch` of `Trainer`). Next-token rows are taken to have the same share of them as
            here.
    """
    maskable = (labels != IGNORED) & text.real
    same_document = text.documents[:, 1:] == text.documents[:, :-1]
    supervised = maskable[:, 1:] & same_document & text.real[:, :-1]
    scale = 1.0 if step_tokens is None else maskable.sum() / torch.as_tensor(step_tokens, device=labels.device)
    ar = _nll(clean_logits[:, :-1][supervised], labels[:, 1:][supervised]).sum() / supervised.sum().clamp(min=1)
    loss = weights.ar * ar
    if noise is not None:
        rows = hidden[:, : labels.shape[1]][noise.masked]
        inverse = noise.probability.reciprocal().expand_as(labels)[noise.masked]
        diffusion = (_nll(head(rows), labels[noise.masked]) * inverse).sum() / maskable.sum().clamp(min=1)
        loss = loss + weights.diffusion * diffusion
    return loss * scale


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    """float32 `[n]`, in nats."""
    return F.cross_entropy(logits.float(), targets, reduction="none")
