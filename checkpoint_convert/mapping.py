"""The table of tensors of a Ministral3 decoder, with their Hugging Face and their Megatron names.

Both formats have the same rows in a different order: a Megatron tensor is the concatenation of its Hugging Face parts,
for attention interleaved by key-value group. In Megatron checkpoints layers are stacked along a first axis. Import,
export, verification and direct loading all use this table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from nld_train.config.schema import ModelConfig
from nld_train.config.vision_tensors import MODULE, PROJECTOR, TOWER, vision_tensors


@dataclass(frozen=True)
class Part:
    """A tensor of a Hugging Face checkpoint.

    Attributes:
        name: without the prefix of its architecture; `{layer}` is replaced by the layer's number.
        shape: its dimensions, or their names, see `sizes`.
    """

    name: str
    shape: tuple[str | int, ...]


@dataclass(frozen=True)
class Entry:
    """A tensor of a Megatron checkpoint.

    Attributes:
        key: its name there.
        parts: the Hugging Face tensors that it consists of.
        by_group: rows are ordered by key-value group (the group's queries, its key, its value), not part after part.
    """

    key: str
    parts: tuple[Part, ...]
    by_group: bool = False

    @property
    def per_layer(self) -> bool:
        """Whether there is one per layer, stacked along a first axis."""
        return "{layer}" in self.parts[0].name


@dataclass(frozen=True)
class Segment:
    """Rows of a part that are contiguous in a Megatron tensor.

    Attributes:
        part: the part.
        part_start: index of the first row in the part.
        start: index of that row in the Megatron tensor (of one layer).
        rows: number of rows.
    """

    part: Part
    part_start: int
    start: int
    rows: int


EMBEDDING = "embed_tokens.weight"
# Every architecture has its own name for the head; this is the one used here.
HEAD = "head.weight"

_LAYER = "layers.{layer}."
_ATTENTION = "decoder.layers.self_attention."
_MLP = "decoder.layers.mlp."

ENTRIES = (
    Entry("embedding.word_embeddings.weight", (Part(EMBEDDING, ("vocabulary", "hidden")),)),
    Entry(
        _ATTENTION + "linear_qkv.layer_norm_weight",
        (Part(_LAYER + "input_layernorm.weight", ("hidden",)),),
    ),
    Entry(
        _ATTENTION + "linear_qkv.weight",
        (
            Part(_LAYER + "self_attn.q_proj.weight", ("queries", "hidden")),
            Part(_LAYER + "self_attn.k_proj.weight", ("keys", "hidden")),
            Part(_LAYER + "self_attn.v_proj.weight", ("keys", "hidden")),
        ),
        by_group=True,
    ),
    Entry(
        _ATTENTION + "linear_proj.weight",
        (Part(_LAYER + "self_attn.o_proj.weight", ("hidden", "queries")),),
    ),
    Entry(
        _MLP + "linear_fc1.layer_norm_weight",
        (Part(_LAYER + "post_attention_layernorm.weight", ("hidden",)),),
    ),
    Entry(
        _MLP + "linear_fc1.weight",
        (
            Part(_LAYER + "mlp.gate_proj.weight", ("intermediate", "hidden")),
            Part(_LAYER + "mlp.up_proj.weight", ("intermediate", "hidden")),
        ),
    ),
    Entry(
        _MLP + "linear_fc2.weight",
        (Part(_LAYER + "mlp.down_proj.weight", ("hidden", "intermediate")),),
    ),
    Entry("decoder.final_layernorm.weight", (Part("norm.weight", ("hidden",)),)),
    Entry("output_layer.weight", (Part(HEAD, ("vocabulary", "hidden")),)),
)


@lru_cache(maxsize=64)
def entries(model: ModelConfig) -> tuple[Entry, ...]:
    """All tensors of a model: those of the text decoder, and of its vision tower and projector, if it has them."""
    vision = vision_tensors(model)
    return (*ENTRIES, *(Entry(MODULE + name, (Part(name, shape),)) for name, shape in vision))


def entry_of_key(key: str, model: ModelConfig) -> Entry:
    """The entry of a Megatron tensor."""
    return _by_key(model)[key]


@lru_cache(maxsize=64)
def _by_key(model: ModelConfig) -> dict[str, Entry]:
    return {entry.key: entry for entry in entries(model)}


def is_vision(name: str) -> bool:
    """Whether a Hugging Face tensor, named without the prefix of its architecture, is not of the text decoder."""
    return name.startswith((TOWER, PROJECTOR))


@dataclass(frozen=True)
class Naming:
    """The names of an architecture for the tensors of the table.

    Attributes:
        architecture: as in `config.json`.
        prefix: of all names of the text decoder but the head's.
        head: name of the head.
        vision: prefix of the names of a vision tower and its projector; None without them.
    """

    architecture: str
    prefix: str
    head: str
    vision: str | None = None

    @property
    def aside(self) -> tuple[str, ...]:
        """Prefixes of tensors that do not belong to the text decoder."""
        return () if self.vision is None else (self.vision + TOWER, self.vision + PROJECTOR)

    def full(self, name: str) -> str:
        """The name in a file of this architecture."""
        if is_vision(name):
            assert self.vision is not None, "a text model has no tower"
            return self.vision + name
        return self.head if name == HEAD else self.prefix + name


NAMINGS = (
    Naming(
        "Mistral3ForConditionalGeneration",
        "language_model.model.",
        "language_model.lm_head.weight",
        vision="",
    ),
    # The names that transformers 5 uses in memory; some tools save them.
    Naming(
        "Mistral3ForConditionalGeneration",
        "model.language_model.",
        "lm_head.weight",
        vision="model.",
    ),
    Naming("Ministral3ForCausalLM", "model.", "lm_head.weight"),
    Naming("NemotronLabsDiffusionModel", "encoder.", "diffusion_head.weight"),
    Naming("NemotronLabsDiffusionVLMModel", "encoder.", "diffusion_head.weight", vision="encoder."),
)
_OF_TEXT = {"ministral3": NAMINGS[2], "nld": NAMINGS[3]}
_OF_VISION = {"ministral3": NAMINGS[0], "nld": NAMINGS[4]}


def naming_of_format(output_format: str, model: ModelConfig) -> Naming:
    """The names in an export of a model."""
    return (_OF_TEXT if model.vision is None else _OF_VISION)[output_format]


def sizes(model: ModelConfig) -> dict[str, int]:
    """The values of the names in `Part.shape`."""
    return {
        "vocabulary": model.vocab_size,
        "hidden": model.hidden_size,
        "intermediate": model.intermediate_size,
        "queries": model.num_attention_heads * model.head_dim,
        "keys": model.num_key_value_heads * model.head_dim,
    }


def part_shape(part: Part, model: ModelConfig) -> tuple[int, ...]:
    """Shape of a part in a model."""
    named = sizes(model)
    return tuple(each if isinstance(each, int) else named[each] for each in part.shape)


def entry_shape(entry: Entry, model: ModelConfig) -> tuple[int, ...]:
    """Shape of a Megatron tensor (of one layer if it is per layer), without vocabulary padding."""
    shapes = [part_shape(part, model) for part in entry.parts]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def global_shape(entry: Entry, model: ModelConfig) -> tuple[int, ...]:
    """Shape of a Megatron tensor with its layers stacked."""
    stacked = (model.num_hidden_layers,) if entry.per_layer else ()
    return (*stacked, *entry_shape(entry, model))


def entry_layers(entry: Entry, model: ModelConfig) -> list[int | None]:
    """The layers that have such a tensor; `[None]` if it is not per layer."""
    return list(range(model.num_hidden_layers)) if entry.per_layer else [None]


def part_name(part: Part, layer: int | None) -> str:
    """Name of a part in a layer, without the architecture's prefix."""
    return part.name if layer is None else part.name.format(layer=layer)


@lru_cache(maxsize=64)
def segments(entry: Entry, model: ModelConfig) -> tuple[Segment, ...]:
    """Rows of a Megatron tensor (of one layer), from first to last."""
    groups = model.num_key_value_heads if entry.by_group else 1
    found: list[Segment] = []
    start = 0
    for group in range(groups):
        for part in entry.parts:
            rows = part_shape(part, model)[0] // groups
            found.append(Segment(part, group * rows, start, rows))
            start += rows
    return tuple(found)


@dataclass(frozen=True)
class Named:
    """A Hugging Face tensor of a model: its name without prefix, its part, and its Megatron tensor and layer."""

    name: str
    part: Part
    entry: Entry
    layer: int | None


def tensors(model: ModelConfig) -> Iterator[Named]:
    """All Hugging Face tensors of a model, in the order of the forward pass: embedding, layers, norm, head.

    Those of a vision tower and its projector come last.
    """
    for entry in [entry for entry in ENTRIES if not entry.per_layer][:1]:
        yield from _of_entry(entry, None)
    for layer in range(model.num_hidden_layers):
        for entry in ENTRIES:
            if entry.per_layer:
                yield from _of_entry(entry, layer)
    for entry in [entry for entry in entries(model) if not entry.per_layer][1:]:
        yield from _of_entry(entry, None)


def _of_entry(entry: Entry, layer: int | None) -> Iterator[Named]:
    for part in entry.parts:
        yield Named(part_name(part, layer), part, entry, layer)
