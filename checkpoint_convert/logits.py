"""Logits of a checkpoint of either kind, computed by `transformers`' layers with one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from checkpoint_convert.export_config import decoder_config
from checkpoint_convert.mapping import EMBEDDING, ENTRIES, HEAD, part_name, part_shape
from checkpoint_convert.weights import Weights, row_blocks
from nld_train.config.vision_tensors import vision_tensors
from nld_train.model.vision.pictures import Pictures, image_index

_HEAD_BYTES = 256 << 20


@torch.no_grad()
def logit_blocks(
    weights: Weights,
    tokens: Tensor,
    positions: Tensor,
    rounding: Callable[[str], torch.dtype],
    pictures: Pictures | None = None,
) -> Iterator[Tensor]:
    """Logits of a causal pass, in blocks of the vocabulary.

    Args:
        weights: of either kind.
        tokens: int64 `[1, L]`.
        positions: int64 `[1, L]`, for the rotary embedding and the query scale.
        rounding: from the name of a tensor to the type to which it is rounded; computation is in float32.
        pictures: those of the `[IMG]` tokens; None for a text alone.

    Yields:
        float32 `[L, n]` for the next `n` ids.
    """
    read = _Reader(weights, rounding)
    hidden = _hidden_states(read, tokens, positions, pictures)
    row_bytes = 4 * weights.model.hidden_size
    for start, stop in row_blocks(0, weights.model.vocab_size, row_bytes, _HEAD_BYTES):
        yield hidden @ read.rows(HEAD, start, stop).T


class _Reader:
    """Rows rounded to a common type, in float32."""

    def __init__(self, weights: Weights, rounding: Callable[[str], torch.dtype]) -> None:
        self.model = weights.model
        self._weights, self._rounding = weights, rounding

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._weights.rows(name, start, stop).to(self._rounding(name)).float()

    def layer(self, layer: int) -> dict[str, Tensor]:
        """The state dict of a layer, with the names of `transformers`."""
        parts = [part for entry in ENTRIES if entry.per_layer for part in entry.parts]
        names = [(part_name(part, layer), part_shape(part, self.model)[0]) for part in parts]
        return {name.removeprefix(f"layers.{layer}."): self.rows(name, 0, rows) for name, rows in names}


def _features(read: _Reader, pictures: Pictures) -> Tensor:
    """Features of pictures, `[n, h]`."""
    from nld_train.model.vision.encoder import VisionEncoder

    encoder = VisionEncoder(read.model, torch.float32)
    encoder.load_state_dict({name: read.rows(name, 0, shape[0]) for name, shape in vision_tensors(read.model)})
    return encoder(pictures)


def _hidden_states(read: _Reader, tokens: Tensor, positions: Tensor, pictures: Pictures | None) -> Tensor:
    from transformers import Ministral3Config
    from transformers.models.ministral3 import modeling_ministral3 as ministral3

    model = read.model
    config = Ministral3Config(**decoder_config(model), attn_implementation="eager")
    rotary = ministral3.Ministral3RotaryEmbedding(config)
    hidden = torch.cat([read.rows(EMBEDDING, int(token), int(token) + 1) for token in tokens[0]])[None]
    if pictures is not None:
        assert model.vision is not None
        hidden[0, image_index(tokens, model.vision.image_token_id)] = _features(read, pictures)
    angles = rotary(hidden, position_ids=positions)
    length = tokens.shape[1]
    hidden_pairs = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    for layer in range(model.num_hidden_layers):
        with torch.device("meta"):
            block = ministral3.Ministral3DecoderLayer(config, layer)
        block.load_state_dict(read.layer(layer), assign=True)
        hidden = block(hidden, attention_mask=hidden_pairs, position_ids=positions, position_embeddings=angles)
    norm = ministral3.Ministral3RMSNorm(model.hidden_size, model.rms_norm_eps)
    norm.weight.copy_(read.rows("norm.weight", 0, model.hidden_size))
    return norm(hidden)[0]
