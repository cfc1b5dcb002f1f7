"""Micro-batches of the objective in host memory: streams, rows, targets and weights, made of samples.

Everything that can be derived from samples is made here, in the processes of the data loader. What depends on the whole
step, the denominators of the averages, is applied to the rows' shares on the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nld_train.config.image_tokens import image_token_count
from nld_train.config.schema import Averaging, VisionConfig
from nld_train.data.flat_buffer import FlatBuffer
from nld_train.errors import UserError
from nld_train.losses.objective import ar_row_shares, diffusion_row_shares
from nld_train.masking.context_parallel import ContextShard
from nld_train.masking.layout import NoisyLayout, StreamLayout, document_borders
from nld_train.masking.schedule import NoiseSchedule
from nld_train.model.vision.pictures import Pictures, image_index

# Samples of one micro-batch: tensors `[b, ...]` under the names of `data.samples`, and `pictures`, one `Pictures` of
# all samples, where they have them.
Samples = dict[str, Any]


def stack(samples: list[dict[str, Any]]) -> Samples:
    """Samples as of `data.samples`, each of their tensors stacked.

    A sample may have `pictures`, a list of float32 `[3, height, width]`, which may be empty; then every sample has it.
    """
    tensors = [{name: value for name, value in sample.items() if name != "pictures"} for sample in samples]
    stacked: Samples = torch.utils.data.default_collate(tensors)
    if "pictures" in samples[0]:
        stacked["pictures"] = Pictures.of([picture for sample in samples for picture in sample["pictures"]])
    return stacked


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
class StreamBatch:
    """A micro-batch in host memory.

    Attributes:
        tensors: `tokens` int64 `[b, S]`, under context parallelism this rank's shard of the streams; `index`, `targets`
            int64 `[n]` and `shares` float32 `[n]` of this rank's rows (see `Rows`, `losses.objective`); the layout of
            the streams, see `layout_tensors`; with pictures `image_index`, see `model.vision.pictures.image_index`.
        ar_count: AR rows among them.
        counts: N_ar, N, M and the number of sequences of the whole micro-batch, see `GlobalCounts`.
        shard: of the streams on this rank; None without context parallelism.
        pictures: of the samples; None where they have none.
    """

    tensors: FlatBuffer
    ar_count: int
    counts: tuple[int, int, int, int]
    shard: ContextShard | None
    pictures: Pictures | None = None

    def pin_memory(self) -> StreamBatch:
        """The same in page-locked memory; torch's data loader calls it."""
        pictures = None if self.pictures is None else self.pictures.pin_memory()
        return replace(self, tensors=self.tensors.pin_memory(), pictures=pictures)


@dataclass(frozen=True)
class StreamCollator:
    """Makes micro-batches of samples: the `collate` of the data loader. It is sent to the loader's processes.

    Attributes:
        two_streams: whether there is a noisy stream.
        mask_token_id: of the model.
        averaging: of the losses.
        schedule: gives the loss weights of masked tokens.
        sequences: samples of an optimizer step.
        context_rank: of this rank among the context-parallel ranks.
        context_size: their number.
        vision: the tower of a vision-language model; None for text alone.
    """

    two_streams: bool
    mask_token_id: int
    averaging: Averaging
    schedule: NoiseSchedule
    sequences: int
    context_rank: int = 0
    context_size: int = 1
    vision: VisionConfig | None = None

    def __call__(self, samples: list[dict[str, Any]]) -> StreamBatch:
        """The micro-batch of some samples."""
        return self.of(stack(samples))

    def of(self, samples: Samples) -> StreamBatch:
        """The micro-batch of stacked samples.

        Args:
            samples: as of `data.samples`: `tokens` and `documents` `[b, L+1]`, `supervised` `[b, L]`, and for two
                streams `noisy_tokens`, `blocks`, `begins`, `masked` and `probability` `[b, N]`, and `clean_ends`
                `[b, L]` where clean tokens see their whole block; `pictures`, which may be none, but on
                ranks without the tower.

        Raises:
            UserError: the `[IMG]` tokens are not those of the pictures.
        """
        layout = StreamLayout.of_clean(samples["documents"][:, :-1])
        if self.two_streams:
            layout = layout.with_noisy(samples["blocks"], samples["begins"])
            layout = layout.with_clean_ends(samples.get("clean_ends"))
        rows, shares = select_rows(samples, self.two_streams), self._shares(samples)
        tokens, shard = stream_tokens(samples, self.two_streams, self.mask_token_id), self._shard(layout)
        if shard is not None:
            on_rank, index = shard.find(rows.index, len(tokens))
            ar_count = int(on_rank[: rows.ar_count].sum())
            tokens, shares = tokens[:, shard.indices], shares[on_rank]
            rows = Rows(index, rows.targets[on_rank], ar_count)
        tensors = {"tokens": tokens, "index": rows.index, "targets": rows.targets, "shares": shares}
        pictures, image = self._pictures(samples, layout.noisy_length)
        if image is not None:
            tensors["image_index"] = image
        flat = FlatBuffer.of(tensors | layout_tensors(layout))
        return StreamBatch(flat, rows.ar_count, count_rows(samples), shard, pictures)

    def _pictures(self, samples: Samples, noisy_length: int) -> tuple[Pictures | None, Tensor | None]:
        """The pictures of the samples and where their `[IMG]` tokens are in both streams; None where there are none."""
        if "pictures" not in samples:  # this rank has no tower
            return None, None
        pictures: Pictures = samples["pictures"]
        if self.vision is None:
            if len(pictures):
                raise UserError("model.vision=null: the data has pictures, which need a tower; set model.vision")
            return None, None
        # The noisy stream consists of answers, where the id has no picture.
        index = image_index(samples["tokens"][:, :-1], self.vision.image_token_id)
        expected = sum(image_token_count(self.vision, size) for size in pictures.sizes.tolist())
        if len(index) != expected:
            numbers = ", ".join(map(str, samples["sample_index"].tolist())) if "sample_index" in samples else "?"
            raise UserError(
                f"the samples {numbers} have {len(index)} [IMG] tokens (id {self.vision.image_token_id}), but their "
                f"{len(pictures)} pictures need {expected}; prepare the data with the processor of this model"
            )
        if not len(pictures):
            return None, None
        return pictures, index + noisy_length * len(samples["tokens"])

    def _shares(self, samples: Samples) -> Tensor:
        """float32 `[n]`, of all rows."""
        supervised = samples["supervised"]
        ar = ar_row_shares(self.averaging, self.sequences, supervised)[supervised]
        if not self.two_streams:
            return ar
        masked, probability = samples["masked"], samples["probability"]
        shares = diffusion_row_shares(self.averaging, self.sequences, masked, probability, self.schedule)
        return torch.cat([ar, shares[masked]])

    def _shard(self, layout: StreamLayout) -> ContextShard | None:
        if self.context_size == 1:
            return None
        return _context_shard(self.context_rank, self.context_size, layout.length, layout.noisy_length)


# Its index tensors are made once.
_context_shard = cache(ContextShard)


def count_rows(samples: Samples) -> tuple[int, int, int, int]:
    """N_ar, N, M and the number of sequences of a micro-batch, see `GlobalCounts`."""
    counts = (int(samples[name].sum()) if name in samples else 0 for name in ("supervised", "maskable", "masked"))
    ar, maskable, masked = counts
    return ar, maskable, masked, len(samples["tokens"])


def stream_tokens(samples: Samples, two_streams: bool, mask_token_id: int) -> Tensor:
    """int64 `[b, S]`: the clean stream, after the noisy one where there are two. The last token is only a target."""
    clean = samples["tokens"][:, :-1]
    if not two_streams:
        return clean
    return torch.cat([samples["noisy_tokens"].masked_fill(samples["masked"], mask_token_id), clean], dim=1)


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


def layout_tensors(layout: StreamLayout) -> dict[str, Tensor]:
    """The tensors of a layout by name, for a `FlatBuffer`; `layout_of` reads them."""
    tensors = {
        "documents": layout.documents,
        "positions": layout.positions,
        "borders": document_borders(layout.documents),
    }
    if layout.noisy is not None:
        noisy = layout.noisy
        tensors |= {"blocks": noisy.blocks, "begins": noisy.begins, "noisy_positions": noisy.positions}
    if layout.clean_ends is not None:
        tensors["clean_ends"] = layout.clean_ends
    return tensors


def layout_of(tensors: FlatBuffer) -> StreamLayout:
    """The layout whose tensors are in a buffer, on its device."""
    noisy = None
    if "blocks" in tensors:
        noisy = NoisyLayout(tensors["blocks"], tensors["begins"], tensors["noisy_positions"])
    layout = StreamLayout(tensors["documents"], tensors["positions"], noisy)
    return replace(layout, clean_ends=tensors["clean_ends"]) if "clean_ends" in tensors else layout
