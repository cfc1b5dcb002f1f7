"""The model: Megatron-Core's GPT over two streams, which returns negative log-likelihoods of selected rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor

from nld_train.losses.cross_entropy import chunked_nll, vocabulary_parallel_nll
from nld_train.model.head import Head, gradients_added
from nld_train.model.vision.encoder import NoGradient, VisionEncoder
from nld_train.model.vision.pictures import Pictures
from nld_train.profiling import profiled

# Computes one result per row, `[n, ...]`, from hidden rows `[n, h]` and the head, which returns this rank's logits.
Readout = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]


class Ministral3Model(GPTModel):
    """A Ministral3 decoder, or its part on one pipeline stage.

    Embedding, layers, head, sharded state and pipeline inputs are Megatron's. The forward pass differs: it takes a
    handle to the micro-batch's streams and a selection of rows, and the head is applied to those rows only.

    Args:
        vocab_size: size of the vocabulary before padding; the weights have `padded_vocab_size`.
        padded_vocab_size: a multiple of the tensor-parallel size.
        chunk_rows: rows of logits in memory at once, 0 for all.
        head_kernel: computes cross-entropy from logits, a name of `losses.cross_entropy.KERNELS`.
        vision: tower and projector of a vision-language model, for its first stage; None elsewhere.
        **arguments: Megatron's, see `GPTModel`.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        padded_vocab_size: int,
        chunk_rows: int,
        head_kernel: str = "chunked",
        vision: VisionEncoder | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            vocab_size=padded_vocab_size,
            position_embedding_type="none",  # applied in the attention
            share_embeddings_and_output_weights=False,
            # Features of pictures are put into whole embeddings, which are divided afterwards.
            scatter_embedding_sequence_parallel=vision is None,
            **arguments,
        )
        self.real_vocab_size = vocab_size
        self.chunk_rows = chunk_rows
        self.head_kernel = head_kernel
        self.vision = vision
        if self.post_process:
            self.output_layer = self._make_head()

    def _make_head(self) -> Head:
        """The head in place of Megatron's; its communication is done once for all chunks of rows, in `_rows`."""
        head = Head(
            self.config.hidden_size,
            self.vocab_size,
            config=self.config,
            init_method=self.config.init_method,
            bias=False,
            gather_output=False,
            tp_group=self.pg_collection.tp,
        )
        # With the marks that Megatron has set on it.
        head.weight = self.output_layer.weight
        head.sequence_parallel = False
        head.allreduce_dgrad = False
        head.disable_grad_reduce = True
        return head

    def forward(
        self,
        tokens: Tensor,
        streams: Tensor,
        rows: Tensor | None = None,
        targets: Tensor | None = None,
        readout: Readout | None = None,
        measured: int = 0,
        pictures: Pictures | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """One pass over the streams of a micro-batch.

        Args:
            tokens: int64 `[b, S]`, `[noisy | clean]` or clean alone; used by the first pipeline stage.
            streams: handle of the pass's `LayerContext`, see `model.streams`.
            rows: int64 `[n]`, indices into the flattened `[S * b]` hidden states; None for all rows.
            targets: int64 `[n]`, their target tokens, or None for logits.
            readout: computes another result from the rows.
            measured: the first rows with targets that have no gradient: their loss is measured and not trained.
            pictures: of the clean stream; used by the first pipeline stage, like `image_index`. None for no pictures.
            image_index: int64 `[n]`, where their `[IMG]` tokens are in the flattened `[S * b]` embeddings, see
                `model.vision.pictures.image_index`.

        Returns:
            On the last pipeline stage float32 `[n]` negative log-likelihoods in nats, or logits `[n, vocab_size]`
            without targets, or the result of `readout`; on earlier ones the hidden states `[S, b, h]`.
        """
        embedded = self._embed(tokens, pictures, image_index) if self.pre_process else None
        hidden = self.decoder(hidden_states=embedded, attention_mask=streams)
        if not self.post_process:
            return hidden
        selected, head = self._rows(hidden, rows), self._head
        if measured:
            assert targets is not None
            with torch.no_grad():
                without_gradients = self._nll(selected[:measured], targets[:measured], self._head)
            selected, targets = selected[measured:], targets[measured:]
        if self.output_layer.accumulates():
            selected, head = gradients_added(selected, self.output_layer.weight), self._accumulating_head
        if readout is not None:
            return readout(selected, head)
        if targets is None:
            return self._whole(head(selected))
        nll = self._nll(selected, targets, head)
        return torch.cat([without_gradients, nll]) if measured else nll

    def _nll(self, rows: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        with profiled("head and cross-entropy"):
            nll = vocabulary_parallel_nll(self.real_vocab_size, self.head_kernel)
            return chunked_nll(rows, targets, head, nll, self.chunk_rows)

    def logits(self, rows: Tensor) -> Tensor:
        """Logits `[n, vocab_size]` of hidden rows `[n, h]`, whole on every tensor-parallel rank; last stage only."""
        return self._whole(self._head(rows))

    def _whole(self, logits: Tensor) -> Tensor:
        """Logits `[n, vocab_size]` of the ranks' `[n, padded_vocab_size / tensor]`."""
        whole: Tensor = gather_from_tensor_model_parallel_region(logits)
        return whole[:, : self.real_vocab_size]

    def _embed(self, tokens: Tensor, pictures: Pictures | None = None, image_index: Tensor | None = None) -> Tensor:
        """Embeddings `[S, b, h]`, those of `[IMG]` tokens from pictures; under sequence parallelism a part of S."""
        embedded: Tensor = self.embedding(input_ids=tokens, position_ids=None)
        if self.vision is not None:
            embedded = self._with_pictures(self.vision, embedded, pictures, image_index)
            if self.config.sequence_parallel:
                embedded = scatter_to_sequence_parallel_region(embedded)
        if self.config.recompute_granularity == "full" and torch.is_grad_enabled() and not embedded.requires_grad:
            # Megatron's recomputation needs an input that requires a gradient; a frozen embedding's output does not.
            embedded.requires_grad_()
        return embedded

    @staticmethod
    def _with_pictures(
        vision: VisionEncoder, embedded: Tensor, pictures: Pictures | None, image_index: Tensor | None
    ) -> Tensor:
        if pictures is not None and len(pictures):
            assert image_index is not None
            features = vision(pictures).to(embedded.dtype)
            return embedded.flatten(0, 1).index_copy(0, image_index, features).view_as(embedded)
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in vision.parameters()):
            return NoGradient.apply(embedded, vision.blank())
        return embedded

    def _rows(self, hidden: Tensor, rows: Tensor | None) -> Tensor:
        """Selected rows `[n, h]` of `[S, b, h]`, whole on every tensor-parallel rank.

        The backward pass all-reduces the gradients of the vocabulary shards here, once.
        """
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
        elif parallel_state.get_tensor_model_parallel_world_size() > 1:
            hidden = copy_to_tensor_model_parallel_region(hidden)
        flat = hidden.reshape(-1, hidden.shape[-1])
        return flat if rows is None else flat.index_select(0, rows)

    def _head(self, rows: Tensor) -> Tensor:
        """This rank's logits `[n, padded_vocab_size / tensor]` of hidden rows `[n, h]`."""
        logits: Tensor = self.output_layer(rows)[0]
        return logits

    def _accumulating_head(self, rows: Tensor) -> Tensor:
        """`_head` for rows that have passed `gradients_added`."""
        logits: Tensor = self.output_layer(rows, accumulate=True)[0]
        return logits
