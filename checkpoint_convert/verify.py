"""`nld-convert verify`: whether two checkpoints of either kind are the same model."""

from __future__ import annotations

import math
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoint_convert.checkpoints import open_weights
from checkpoint_convert.logits import logit_blocks
from checkpoint_convert.mapping import EMBEDDING, Named, part_shape, tensors
from checkpoint_convert.megatron import MegatronWeights
from checkpoint_convert.source_values import is_token
from checkpoint_convert.weights import Weights, row_blocks, widest
from nld_train.config.image_tokens import image_tokens
from nld_train.config.schema import ModelConfig, VisionConfig
from nld_train.errors import UserError
from nld_train.model.finite import is_finite
from nld_train.model.vision.pictures import Pictures
from nld_train.outside_json import parse_json, read_bytes
from nld_train.progress import Advance, progress_bar

LOGIT_TOLERANCE = 1e-5
RANDOM = "random"
_RANDOM_TOKENS = 32
_SEED = 1234
_SHOWN = 10
_PRINTED_WIDTH = 120
# Name, initialisation and token ids do not change what the model computes.
_NOT_COMPARED = ("name", "initializer_range", "mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Difference:
    """The difference between two tensors of one name, or between the logits of two checkpoints.

    Attributes:
        name: of the tensor, or of the tokens for which logits were computed.
        largest: largest absolute difference; nan if only one of them is not finite.
        scale: largest absolute value of the first.
        unequal: number of values that differ.
        count: number of values.
        agrees: whether the difference is within the tolerance.
        finite: whether no value of either is NaN or infinite.
    """

    name: str
    largest: float
    scale: float
    unequal: int
    count: int
    agrees: bool
    finite: bool = True


@dataclass(frozen=True)
class Verification:
    """Result of a comparison: settings that differ, and all tensors and logits.

    There are no logits of weights that are not finite.
    """

    settings: list[str]
    tensors: list[Difference]
    logits: list[Difference]

    @property
    def agrees(self) -> bool:
        """Whether settings, tensors and logits all agree, and all weights are finite."""
        return not self.settings and all(found.agrees and found.finite for found in (*self.tensors, *self.logits))


def verify(
    first: Path,
    second: Path,
    tokens: str | None = RANDOM,
    show_tensors: Callable[[Sequence[Difference]], None] | None = None,
) -> Verification:
    """Compares two checkpoints: settings that change what is computed, every tensor, and logits.

    Tensors agree when they are equal, after both are rounded to the less precise of their two types. Logits are
    computed in float32 from the rounded values, and agree within 1e-5 of the largest logit. Random tokens are used at
    the first positions, and at positions where the query scale of long contexts changes.

    Args:
        first: a checkpoint of either kind, or a run directory.
        second: another.
        tokens: `random`, or a file of token ids, as JSON or separated by spaces; None compares no logits.
        show_tensors: called with the differences between tensors before the logits, which take longer, are computed.

    Raises:
        UserError: one of them cannot be read, their shapes differ, or a token is not in the vocabulary.
    """
    one = open_weights(first)
    # With the tower of a Mistral3 wrapper where the other side has one.
    two = open_weights(second, one.model.mask_token_id, vision=True if one.model.vision else None)
    if two.model.vision is not None and one.model.vision is None:
        one = open_weights(first, two.model.mask_token_id, vision=True)
    _refuse_other_shapes(first, one.model, second, two.model)
    passes = [] if tokens is None else _tokens(tokens, one.model)
    compared = _compare_tensors(one, two)
    if show_tensors is not None:
        show_tensors(compared)
    # Of weights that are not finite the logits say nothing.
    logits = _compare_passes(one, two, passes if all(found.finite for found in compared) else [])
    for weights in (one, two):
        if isinstance(weights, MegatronWeights):
            weights.finish()
    return Verification(_other_settings(one.model, two.model), compared, logits)


@dataclass(frozen=True)
class _Pass:
    """What logits are compared for: tokens `[1, L]` at positions `[1, L]`, and the pictures of their `[IMG]` tokens."""

    name: str
    tokens: Tensor
    positions: Tensor
    pictures: Pictures | None = None


class _Counted:
    """Weights that count the bytes which are read from them."""

    def __init__(self, weights: Weights, advance: Advance) -> None:
        self.model, self.dtype = weights.model, weights.dtype
        self._weights, self._advance = weights, advance

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """See `Weights.rows`."""
        rows = self._weights.rows(name, start, stop)
        self._advance(rows.nbytes)
        return rows


def _bytes(weights: Weights, named: Sequence[Named]) -> int:
    return sum(math.prod(part_shape(n.part, weights.model)) * weights.dtype(n.name).itemsize for n in named)


def _compare_tensors(one: Weights, two: Weights) -> list[Difference]:
    named = list(tensors(one.model))
    with progress_bar("compare tensors", _bytes(one, named) + _bytes(two, named), in_bytes=True) as advance:
        counted = _Counted(one, advance), _Counted(two, advance)
        return [_compare_tensor(*counted, tensor.name, part_shape(tensor.part, one.model)) for tensor in named]


def _compare_passes(one: Weights, two: Weights, passes: Sequence[_Pass]) -> list[Difference]:
    """Compares logits; a pass reads every tensor once, and of the embedding a few rows."""
    named = [tensor for tensor in tensors(one.model) if tensor.name != EMBEDDING]
    total = len(passes) * (_bytes(one, named) + _bytes(two, named))
    with progress_bar("compare logits", total, in_bytes=True, shown=bool(passes)) as advance:
        counted = _Counted(one, advance), _Counted(two, advance)
        return [_compare_logits(*counted, each) for each in passes]


def _refuse_other_shapes(first: Path, one: ModelConfig, second: Path, two: ModelConfig) -> None:
    if (one.vision is None) != (two.vision is None):
        raise UserError(f"{first if one.vision else second} has a vision tower, and the other is a text model")
    for key, value in asdict(one).items():
        integer = isinstance(value, int) and key not in (*_NOT_COMPARED, "max_position_embeddings")
        if integer and value != getattr(two, key):
            raise UserError(
                f"{key}: {value} in {first}, but {getattr(two, key)} in {second}; these are different models"
            )


def _other_settings(one: ModelConfig, two: ModelConfig) -> list[str]:
    ones, twos = asdict(one), asdict(two)
    return [
        f"{key}: {ones[key]} and {twos[key]}" for key in ones if key not in _NOT_COMPARED and ones[key] != twos[key]
    ]


def _common(one: Weights, two: Weights, name: str) -> torch.dtype:
    """The less precise of a tensor's two types; for bf16 and fp16, which round differently, the first's type."""
    types = (one.dtype(name), two.dtype(name))
    return types[0] if widest({*types}) not in types else min(types, key=lambda dtype: dtype.itemsize)


def _compare_tensor(one: Weights, two: Weights, name: str, shape: tuple[int, ...]) -> Difference:
    dtype, largest, scale, unequal, finite = _common(one, two, name), 0.0, 0.0, 0, True
    for start, stop in row_blocks(0, shape[0], 4 * math.prod(shape[1:])):
        a, b = (weights.rows(name, start, stop).to(dtype).float() for weights in (one, two))
        found = (a != b) & ~(a.isnan() & b.isnan())
        unequal += int(found.sum())
        largest = _maximum(largest, (a - b).where(found, 0.0))
        scale = _maximum(scale, a)
        finite = finite and is_finite(a) and is_finite(b)
    return Difference(name, largest, scale, unequal, math.prod(shape), unequal == 0, finite)


def _maximum(so_far: float, values: Tensor) -> float:
    return float(torch.maximum(torch.tensor(so_far), values.abs().max()))


def _compare_logits(one: Weights, two: Weights, what: _Pass) -> Difference:
    largest = scale = 0.0
    unequal = count = 0
    # Both models' weights are rounded to the same type, so that only other differences are found.
    rounding = partial(_common, one, two)
    blocks = (logit_blocks(weights, what.tokens, what.positions, rounding, what.pictures) for weights in (one, two))
    for a, b in zip(*blocks, strict=True):
        largest, scale = _maximum(largest, a - b), _maximum(scale, a)
        unequal += int((a != b).sum())
        count += a.numel()
    return Difference(what.name, largest, scale, unequal, count, agrees=largest <= LOGIT_TOLERANCE * max(1.0, scale))


def _tokens(given: str, model: ModelConfig) -> list[_Pass]:
    """The passes to compare."""
    if given != RANDOM:
        tokens = _read_tokens(Path(given), model.vocab_size)
        return [_Pass(f"logits of {given}", tokens, torch.arange(tokens.shape[1])[None])]
    generator = torch.Generator().manual_seed(_SEED)
    tokens = torch.randint(model.vocab_size, (1, _RANDOM_TOKENS), generator=generator)
    # Across the first step of the query scale, or the last position of the context length.
    beyond = model.rope_parameters.original_max_position_embeddings or model.max_position_embeddings
    starts = (0, max(_RANDOM_TOKENS, beyond - _RANDOM_TOKENS // 2))
    passes = [_Pass(f"logits, positions from {s}", tokens, torch.arange(s, s + _RANDOM_TOKENS)[None]) for s in starts]
    if model.vision is not None:
        passes.append(_drawn(model.vision, tokens))
    return passes


def _drawn(vision: VisionConfig, text: Tensor) -> _Pass:
    """A picture of two squares by three `[IMG]` tokens before the text, with colours that change over both axes."""
    step = vision.patch_size * vision.spatial_merge_size
    size = (2 * step, 3 * step)
    rows, columns = (torch.linspace(-1, 1, edge) for edge in size)
    picture = torch.stack([rows[:, None] + 0 * columns, rows[:, None] * columns, 0 * rows[:, None] + columns.cos()])
    text = text.masked_fill(text == vision.image_token_id, vision.image_end_token_id)
    tokens = torch.cat([torch.tensor([image_tokens(vision, size)]), text], dim=1)
    positions = torch.arange(tokens.shape[1])[None]
    return _Pass("logits, a drawn picture", tokens, positions, Pictures.of([picture]))


def _read_tokens(path: Path, vocabulary: int) -> Tensor:
    content = read_bytes(path, f"--tokens {path}").removeprefix(BOM_UTF8)
    if not content.lstrip().startswith(b"["):
        content = b"[" + b",".join(content.split()) + b"]"
    ids = parse_json(content, f"--tokens {path}, token ids as JSON or separated by spaces")
    if not ids or not all(is_token(token, vocabulary) for token in ids):
        raise UserError(f"--tokens {path}: must contain at least one token id, all from 0 to {vocabulary - 1}")
    return torch.tensor([ids])


def print_tensors(compared: Sequence[Difference]) -> None:
    """Prints a table of the tensors that differ most."""
    ordered = sorted(
        compared, key=lambda d: (d.agrees and d.finite, -(math.inf if math.isnan(d.largest) else d.largest))
    )
    _print_table("Largest differences", ordered[:_SHOWN])


def print_result(found: Verification) -> None:
    """Prints the logits, the settings that differ, and whether the checkpoints agree."""
    if found.logits:
        _print_table("Logits", found.logits)
    console = _console()
    for line in found.settings:
        console.print(f"setting differs: {line}")
    differing = sum(not row.agrees for row in found.tensors)
    poisoned = sum(not row.finite for row in found.tensors)
    not_finite = f", {poisoned} contain NaN or infinity" if poisoned else ""
    logits = "" if found.logits else "no logits compared; "
    console.print(f"{len(found.tensors)} tensors compared, {differing} differ{not_finite}; {logits}", end="")
    console.print("the checkpoints agree" if found.agrees else "the checkpoints do not agree")


def _console() -> Any:
    from nld_train.console import plain_console

    console = plain_console()
    if not console.is_terminal:
        console.width = _PRINTED_WIDTH
    return console


def _print_table(title: str, rows: Sequence[Difference]) -> None:
    from rich.table import Table

    table = Table(title=title, box=None, title_justify="left")
    table.add_column("name", no_wrap=True, overflow="fold")
    for heading in ("difference", "largest value", "unequal values"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows:
        result = ("agrees" if row.agrees else "differs") if row.finite else "not finite"
        table.add_row(row.name, f"{row.largest:.3e}", f"{row.scale:.3e}", f"{row.unequal} of {row.count}", result)
    _console().print(table)
