"""A micro-batch of a drafter stage on the device, with what the passes of a step add to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from nld_train.config.schema import AdapterConfig
from nld_train.data.draft_batch import DraftBatch
from nld_train.data.flat_buffer import FlatBuffer
from nld_train.losses.drafter import Acceptance
from nld_train.training.loop.micro_batch import Placement


@dataclass(frozen=True)
class DrafterSettings:
    """Settings of the passes: the same for every micro-batch of a stage."""

    adapter: AdapterConfig
    vocab_size: int
    mask_token_id: int
    chunk_rows: int
    placement: Placement


@dataclass
class DraftedBatch:
    """The blocks of a micro-batch; what the passes add is None before.

    Attributes:
        host: in host memory.
        settings: of the stage.
        seeds: int64 `[count]`.
        drafts: int64 `[drafts]`.
        acceptance: of the drafts; on the last pipeline stage only.
        hidden: hidden states `[drafts, h]` of the target logits, in a list; on the last pipeline stage only.
        scored: int64 `[n]`, the drafts that enter the loss; on the last pipeline stage only.
    """

    host: DraftBatch
    settings: DrafterSettings
    seeds: Tensor | None = None
    drafts: Tensor | None = None
    acceptance: Acceptance | None = None
    hidden: list[Tensor] = field(default_factory=list)
    scored: Tensor | None = None

    @cached_property
    def tensors(self) -> FlatBuffer:
        """Those of `host` on the device: sent when they are first used, and kept for all passes."""
        return self.host.tensors.to(self.settings.placement.device)

    def noisy(self, with_drafts: bool) -> Tensor:
        """The noisy stream int64 `[b, N]`: seeds, drafts or masks for them, and masks elsewhere."""
        assert self.seeds is not None
        clean, length = self.tensors["clean"], self.host.noisy_length
        tokens = clean.new_full((len(clean) * length,), self.settings.mask_token_id)
        tokens.index_copy_(0, self.tensors["seed_indices"], self.seeds)
        if with_drafts:
            assert self.drafts is not None
            tokens.index_copy_(0, self.tensors["indices"], self.drafts)
        return tokens.view(-1, length)

    def both_streams(self, with_drafts: bool) -> Tensor:
        """int64 `[b, N + L]`: the noisy stream and the text."""
        return torch.cat([self.noisy(with_drafts), self.tensors["clean"]], dim=1)
