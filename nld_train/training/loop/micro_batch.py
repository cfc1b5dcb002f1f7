"""The input of a forward pass, made from a micro-batch of samples: streams, rows, targets and weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from torch import Tensor

from nld_train.config.schema import Averaging
from nld_train.losses.objective import GlobalCounts, ar_row_weights, diffusion_row_weights
from nld_train.masking.context_parallel import ContextShard
from nld_train.masking.layout import StreamLayout
from nld_train.masking.schedule import NoiseSchedule
from nld_train.model import streams
from nld_train.model.rotary import RotaryEmbedding

# One micro-batch of the data loader: tensors `[b, ...]` under the names of `data.samples`.
Samples = dict[str, Tensor]


@dataclass(frozen=True)
class Rows:
    """Rows of the flattened `[S * b]` hidden states that enter the loss, the AR rows first.

    Attributes:
        index: int64 `[n]`.
        targets: int64 `[n]`.
        ar_count: how many of them are AR rows.
    """

    index: Tensor
    targets: Tensor
    ar_count: int


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass and the weights of its rows in the loss.

    Attributes:
        tokens: int64 `[b, S]`, the noisy stream first; under context parallelism this rank's shard of them.
        handle: finds the `StreamContext`, see `model.streams`.
        rows: which rows enter the loss, and their targets.
        ar_weights: float32 `[rows.ar_count]`.
        diffusion_weights: float32, one per masked position, or None in an AR stage.
    """

    tokens: Tensor
    handle: Tensor
    rows: Rows
    ar_weights: Tensor
    diffusion_weights: Tensor | None


@dataclass(frozen=True)
class StreamSettings:
    """Settings that turn samples into streams: the same for every micro-batch of a stage."""

    two_streams: bool
    mask_token_id: int
    averaging: Averaging
    schedule: NoiseSchedule
    dtype: torch.dtype
    device: torch.device


def count_rows(samples: list[Samples]) -> list[int]:
    """N_ar, N, M and the number of sequences in some micro-batches of this rank."""
    totals = [0, 0, 0, 0]
    for batch in samples:
        totals[0] += int(batch["supervised"].sum())
        totals[1] += int(batch["maskable"].sum()) if "maskable" in batch else 0
        totals[2] += int(batch["masked"].sum()) if "masked" in batch else 0
        totals[3] += len(batch["tokens"])
    return totals


def prepare(samples: Samples, counts: GlobalCounts, settings: StreamSettings, rotary: RotaryEmbedding) -> MicroBatch:
    """Builds a micro-batch and registers its stream context.

    Args:
        samples: as of `data.samples`: `tokens` and `documents` `[b, L+1]`, `supervised` `[b, L]`, and for two streams
            `noisy_tokens`, `blocks`, `begins`, `masked` and `probability` `[b, N]`.
        counts: rows of the whole optimizer step, over all ranks.
        settings: of the stage.
        rotary: the rotary embedding of the model.
    """
    layout = StreamLayout.of_clean(samples["documents"][:, :-1])
    if settings.two_streams:
        layout = layout.with_noisy(samples["blocks"], samples["begins"])
    rows = select_rows(samples, settings.two_streams)
    ar = ar_row_weights(settings.averaging, counts, samples["supervised"])[samples["supervised"]]
    diffusion = None
    if settings.two_streams:
        masked = samples["masked"]
        weights = diffusion_row_weights(settings.averaging, counts, masked, samples["probability"], settings.schedule)
        diffusion = weights[masked]
    tokens, shard = stream_tokens(samples, settings), _context_shard(layout)
    if shard is not None:
        on_rank, index = shard.find(rows.index, len(tokens))
        own_ar, own_diffusion = on_rank[: rows.ar_count], on_rank[rows.ar_count :]
        ar, diffusion = ar[own_ar], None if diffusion is None else diffusion[own_diffusion]
        tokens, rows = tokens[:, shard.indices], Rows(index, rows.targets[on_rank], int(own_ar.sum()))
    return MicroBatch(
        tokens=tokens.to(settings.device),
        handle=streams.register(streams.StreamContext.of(layout, rotary, settings.dtype, shard=shard)),
        rows=Rows(rows.index.to(settings.device), rows.targets.to(settings.device), rows.ar_count),
        ar_weights=ar.to(settings.device),
        diffusion_weights=None if diffusion is None else diffusion.to(settings.device),
    )


def _context_shard(layout: StreamLayout) -> ContextShard | None:
    """This rank's shard of the streams, or None without context parallelism."""
    group = parallel_state.get_context_parallel_group(check_initialized=False)
    if group is None or group.size() == 1:
        return None
    return ContextShard(group.rank(), group.size(), layout.length, layout.noisy_length)


def stream_tokens(samples: Samples, settings: StreamSettings) -> Tensor:
    """int64 `[b, S]`: the clean stream, after the noisy one where there are two. The last token is only a target."""
    clean = samples["tokens"][:, :-1]
    if not settings.two_streams:
        return clean
    return torch.cat([samples["noisy_tokens"].masked_fill(samples["masked"], settings.mask_token_id), clean], dim=1)


def select_rows(samples: Samples, two_streams: bool) -> Rows:
    """Supervised rows of the clean stream (target: the next token) and masked rows of the noisy one (same token)."""
    tokens, batch = samples["tokens"], len(samples["tokens"])
    row, index = samples["supervised"].nonzero(as_tuple=True)
    offset = samples["noisy_tokens"].shape[1] if two_streams else 0
    indices, targets = [(offset + index) * batch + row], [tokens[row, index + 1]]
    if two_streams:
        row_masked, index_masked = samples["masked"].nonzero(as_tuple=True)
        indices.append(index_masked * batch + row_masked)
        targets.append(samples["noisy_tokens"][row_masked, index_masked])
    return Rows(index=torch.cat(indices), targets=torch.cat(targets), ar_count=len(row))
