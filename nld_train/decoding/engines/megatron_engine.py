"""The engine over a model in training: same weights, no copy, any tensor and pipeline layout.

Every rank of a model runs the decoder and gets the same logits. Pipeline stages run one after another; the last one's
logits are broadcast. The training state is unchanged: a step has its own stream context, and the model's mode is
restored at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor

from nld_train.collectives import broadcast, receive, send
from nld_train.config.schema import ModelConfig
from nld_train.decoding.clean_stream import PAPER, CleanStream
from nld_train.decoding.engines.cuda_graphs import cycles_on
from nld_train.decoding.engines.engine import Step
from nld_train.decoding.engines.kv_cache import KeyValueCache, allocated_cache
from nld_train.decoding.engines.lean_layers import lean
from nld_train.decoding.engines.megatron_cache import CachedContext
from nld_train.model import streams
from nld_train.model.accelerator import without_tensor_overlap
from nld_train.model.adapters import DRAFTER, adapter_shape
from nld_train.model.ministral3 import Ministral3Model
from nld_train.model.rotary import RotaryEmbedding
from nld_train.model.vision.picture_prompt import ImageTokens
from nld_train.model.vision.pictures import image_index


class MegatronEngine:
    """An `engine.Engine` over this rank's part of a model. Use it inside `decoding()`.

    Args:
        chunks: the model's chunks on this rank, without wrappers.
        model: shapes and special ids.
        rotary: of the model; its device is the engine's.
        clean_stream: how the model was trained to see a text.
    """

    def __init__(
        self,
        chunks: Sequence[Ministral3Model],
        model: ModelConfig,
        rotary: RotaryEmbedding,
        clean_stream: CleanStream = PAPER,
    ) -> None:
        self.chunks = list(chunks)
        self.rotary = rotary
        self.vocabulary_size = model.vocab_size
        self.mask_token_id = model.mask_token_id
        self.context_length = model.max_position_embeddings
        self.has_adapter = adapter_shape(self.chunks, DRAFTER) is not None
        self.clean_stream = clean_stream
        self.image_tokens = ImageTokens.of(model.vision)
        self._config: Any = self.chunks[0].config
        self.cycles = cycles_on(
            rotary.frequencies.device,
            fixed=_pipeline_size() == 1 and not self._config.sequence_parallel,
            captured=self._config.tensor_model_parallel_size == 1,
        )
        self._hidden_size = model.hidden_size
        self._cache = KeyValueCache(0, 0)
        # Of the last step: its sequences, and on the last pipeline stage its hidden states, flat `[T * a, h]`.
        self._rows = 0
        self._hidden: Tensor | None = None

    @contextmanager
    def decoding(self) -> Iterator[MegatronEngine]:
        """Disables recomputation and gradients inside the context and restores the model's mode afterwards."""
        modes = [chunk.training for chunk in self.chunks]
        for chunk in self.chunks:
            chunk.eval()
        try:
            with torch.no_grad(), without_tensor_overlap(self.chunks), ExitStack() as leaner:
                for chunk in self.chunks:
                    leaner.enter_context(lean(chunk))
                yield self
        finally:
            self.allocate(0, 0)
            for chunk in self.chunks:
                chunk.set_input_tensor(None)
            for chunk, mode in zip(self.chunks, modes, strict=True):
                chunk.train(mode)

    def allocate(self, slots: int, capacity: int) -> None:
        """See `engine.Engine.allocate`."""
        self._cache = allocated_cache(self._cache, slots, capacity, self.cycles)
        self._rows, self._hidden = 0, None

    def keep_slots(self, slots: Tensor) -> None:
        """See `engine.Engine.keep_slots`."""
        self._cache.keep_slots(slots)
        self._rows, self._hidden = 0, None

    def forward(self, step: Step) -> Tensor:
        """See `engine.Engine.forward`: the same logits on every rank of the model, on the model's device."""
        rows, length = step.tokens.shape
        outputs = step.outputs
        if outputs is None:
            outputs = torch.arange(length, device=step.tokens.device).expand(rows, -1)
        step = _pad(step, self._config.tensor_model_parallel_size if self._config.sequence_parallel else 1)
        device, self._rows = self.rotary.frequencies.device, rows
        handle = streams.register(CachedContext.of(step, self._cache, self.rotary, self._config.params_dtype))
        try:
            pictures = self._pictures(step, device)
            logits = self._through_pipeline(step.tokens.to(device), handle, self._index(outputs), pictures)
        finally:
            streams.unregister(handle)
        return logits.view(rows, outputs.shape[1], self.vocabulary_size)

    def logits_at(self, outputs: Tensor) -> Tensor:
        """See `engine.Engine.logits_at`."""
        assert len(outputs) == self._rows, "no forward has run since the slots last changed"
        index, logits = self._index(outputs), torch.empty(0)
        if self._hidden is not None:
            logits = self.chunks[-1].logits(self._hidden.index_select(0, index))
        return self._broadcast(logits, index, _pipeline_size()).view(*outputs.shape, self.vocabulary_size)

    def _index(self, outputs: Tensor) -> Tensor:
        """Rows of the flat `[T * a]` hidden states, int64 `[a * R]`, of tokens of each sequence, int64 `[a, R]`."""
        rows = self._rows
        row = torch.arange(rows, device=outputs.device)
        return (outputs * rows + row[:, None]).flatten().to(self.rotary.frequencies.device)

    def _pictures(self, step: Step, device: torch.device) -> dict[str, Any]:
        """The arguments of the model for the pictures of a step; none without."""
        if step.pictures is None:
            return {}
        assert self.image_tokens is not None, "a model without a tower is given no pictures"
        index = image_index(step.tokens, self.image_tokens.token_id).to(device)
        return {"pictures": step.pictures.to(device), "image_index": index}

    def _through_pipeline(self, tokens: Tensor, handle: Tensor, index: Tensor, pictures: dict[str, Any]) -> Tensor:
        """Runs the chunks in the order of their layers; chunk c of the model is on pipeline stage c % stages."""
        stages, stage = _pipeline_size(), parallel_state.get_pipeline_model_parallel_rank()
        last = stages * len(self.chunks) - 1
        output = torch.empty(0)
        for number in range(last + 1):
            if number % stages != stage:
                continue
            chunk = self.chunks[number // stages]
            if number > 0 and stages > 1:
                output = self._receive(tokens, (number - 1) % stages)
            chunk.set_input_tensor(output if number > 0 else None)
            output = chunk(tokens, handle, readout=partial(self._read, chunk, index), **pictures)
            if number < last and stages > 1:
                send(output.contiguous(), _rank_of_stage((number + 1) % stages), _pipeline_group())
        return self._broadcast(output, index, stages)

    def _read(self, chunk: Ministral3Model, index: Tensor, hidden: Tensor, _: Any) -> Tensor:
        """The logits of this step's outputs; the hidden states are kept for `logits_at`."""
        self._hidden = hidden
        return chunk.logits(hidden.index_select(0, index))

    def _receive(self, tokens: Tensor, source: int) -> Tensor:
        """Hidden states `[T, a, h]` (or the sequence-parallel part) from another pipeline stage."""
        rows, length = tokens.shape
        if self._config.sequence_parallel:
            length //= self._config.tensor_model_parallel_size
        shape = (length, rows, self._hidden_size)
        hidden = torch.empty(shape, dtype=self._config.params_dtype, device=tokens.device)
        receive(hidden, _rank_of_stage(source), _pipeline_group())
        return hidden

    def _broadcast(self, logits: Tensor, index: Tensor, stages: int) -> Tensor:
        """The last stage's logits `[n, V]` on every stage, in float32."""
        if stages == 1:
            return logits.float()
        if not parallel_state.is_pipeline_last_stage():
            logits = torch.empty(len(index), self.vocabulary_size, device=index.device)
        logits = logits.float().contiguous()
        broadcast(logits, _rank_of_stage(stages - 1), _pipeline_group())
        return logits


def _pipeline_size() -> int:
    return int(parallel_state.get_pipeline_model_parallel_world_size())


def _pipeline_group() -> dist.ProcessGroup:
    group: dist.ProcessGroup = parallel_state.get_pipeline_model_parallel_group()
    return group


def _rank_of_stage(stage: int) -> int:
    return dist.get_global_rank(_pipeline_group(), stage)


def _pad(step: Step, multiple: int) -> Step:
    """The step, padded so that sequence parallelism can divide it into equal shards."""
    missing = -step.tokens.shape[1] % multiple
    if missing == 0:
        return step
    pattern = None if step.pattern is None else F.pad(step.pattern, (0, missing, 0, missing))
    return replace(
        step, tokens=F.pad(step.tokens, (0, missing)), positions=F.pad(step.positions, (0, missing)), pattern=pattern
    )
