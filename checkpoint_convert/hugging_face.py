"""Weights of a Hugging Face directory: its safetensors files, checked against `mapping` before any tensor is read."""

from __future__ import annotations

from pathlib import Path, PurePath

import torch
from torch import Tensor

from checkpoint_convert.lora import exported_lora
from checkpoint_convert.mapping import EMBEDDING, HEAD, NAMINGS, Naming, part_shape, tensors
from checkpoint_convert.safetensors_file import DTYPES, FP8, SafetensorsFile, Stored
from checkpoint_convert.source_config import OWN, OWN_VISION, SourceConfig, model_config, read_source_config
from checkpoint_convert.weights import row_blocks
from nld_train.errors import UserError
from nld_train.outside_json import brief, read_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Number of tensors that an error message names.
_NAMED = 3
# Size in float32 of the blocks in which FP8 weights are dequantised. The C library does not return larger blocks to the
# system when a thread frees them, which can add up to hundreds of megabytes.
_DEQUANTISED_BYTES = 1 << 20


class HuggingFaceWeights:
    """Weights of a Hugging Face directory, those of its vision tower where they are wanted (see `Weights`).

    FP8 weights are `e4m3 x weight_scale_inv`, multiplied in float32 and rounded to the model's type, as `transformers`
    does. A missing head is a copy of the embedding, whatever the value of `tie_word_embeddings`. A LoRA beside the
    weights (`adapter_config.json`) is added to them, as `transformers` does.

    Args:
        directory: with `config.json` and safetensors files.
        mask_token_id: for a model whose config has none.
        vision: whether with the vision tower; None: with that of an export, and without that of a Mistral3 wrapper.

    Raises:
        UserError: the directory has no config or weights, only pickled weights, a damaged shard, or missing, extra,
            misshapen or duplicated tensors; the message names them.
    """

    def __init__(self, directory: Path, mask_token_id: int | None = None, vision: bool | None = None) -> None:
        self.source: SourceConfig = read_source_config(directory)
        self.model = model_config(self.source, mask_token_id, vision)
        self._files, self._shard_of = _open_shards(directory)
        self._refuse_more_layers_than_tensors()
        self.naming = self._find_naming()
        self.head_is_copy = self.naming.head not in self._shard_of
        self._fp8 = self._check_tensors()
        self.lora = exported_lora(directory, self.model, self.naming)
        self._fp8_target = DTYPES[_safetensors_name(self.source)] if self._fp8 else None

    @property
    def aside(self) -> list[str]:
        """Names of the tensors of a vision tower and its projector that are not read."""
        left_out = self.naming.aside if self.model.vision is None else ()
        return [name for name in self._shard_of if name.startswith(left_out)] if left_out else []

    @property
    def activation_scales(self) -> list[str]:
        """Names of the activation scales of FP8 weights, which are not used after dequantisation."""
        return [name for name in self._shard_of if self._is_activation_scale(name)]

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor, after dequantisation."""
        full = self._full(name)
        if full in self._fp8:
            assert self._fp8_target is not None
            return self._fp8_target
        return DTYPES[self._stored(full).dtype]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor; a view of the file unless it is FP8 or changed by a LoRA."""
        rows = self._stored_rows(self._full(name), start, stop)
        return rows if self.lora is None else self.lora.added(name, start, rows)

    def _stored_rows(self, full: str, start: int, stop: int) -> Tensor:
        rows = self._files[self._shard_of[full]].rows(full, start, stop)
        if full not in self._fp8:
            return rows
        dequantised = torch.empty(rows.shape, dtype=self._fp8_target)
        for first, last in row_blocks(0, len(rows), rows[0].numel() * torch.float32.itemsize, _DEQUANTISED_BYTES):
            dequantised[first:last] = rows[first:last].float() * self._fp8[full]
        return dequantised

    def _full(self, name: str) -> str:
        return self.naming.full(EMBEDDING if name == HEAD and self.head_is_copy else name)

    def _stored(self, full: str) -> Stored:
        return self._files[self._shard_of[full]].tensors[full]

    def _refuse_more_layers_than_tensors(self) -> None:
        """The tensors of a config's layers are listed below, and a small file can ask for a billion of them."""
        if self.model.num_hidden_layers > len(self._shard_of):
            raise UserError(
                f"{self.source.directory}/config.json: num_hidden_layers={self.model.num_hidden_layers}, but the "
                f"weights have only {len(self._shard_of)} tensors"
            )

    def _find_naming(self) -> Naming:
        """The naming of this architecture under which the embedding exists."""
        candidates = [naming for naming in NAMINGS if naming.architecture == self.source.architecture]
        found = [naming for naming in candidates if naming.full(EMBEDDING) in self._shard_of]
        return found[0] if found else candidates[0]

    def _check_tensors(self) -> dict[str, float]:
        """Compares names, shapes and types with `mapping`; returns the scales of FP8 weights by full name."""
        expected = {self.naming.full(t.name): part_shape(t.part, self.model) for t in tensors(self.model)}
        if self.head_is_copy and self._may_copy_head():
            del expected[self.naming.head]
        where = self.source.directory
        _refuse(where, "missing tensor", [name for name in expected if name not in self._shard_of])
        scales = {f"{name}_scale_inv" for name in expected if self._stored(name).dtype == FP8}
        _refuse(where, "missing tensor", [name for name in scales if name not in self._shard_of])
        aside = {*self.aside, *self.activation_scales}
        extra = [name for name in self._shard_of if name not in expected and name not in scales and name not in aside]
        _refuse(where, "extra tensor", extra)
        for name, shape in expected.items():
            self._check_shape_and_type(name, shape)
        return {name.removesuffix("_scale_inv"): self._scale(name) for name in scales}

    def _may_copy_head(self) -> bool:
        """This project's architecture is untied: there a missing head is an error, unless the config has it tied."""
        own = self.source.architecture in (OWN, OWN_VISION)
        return not own or bool(self.source.outer.get("tie_word_embeddings"))

    def _is_activation_scale(self, name: str) -> bool:
        weight = f"{name.removesuffix('.activation_scale')}.weight"
        return name.endswith(".activation_scale") and f"{weight}_scale_inv" in self._shard_of

    def _check_shape_and_type(self, name: str, shape: tuple[int, ...]) -> None:
        found = self._stored(name)
        if found.shape != shape:
            raise UserError(
                f"{self.source.directory}: tensor {name} has shape {list(found.shape)}, "
                f"but config.json requires {list(shape)}"
            )
        if found.dtype not in (*DTYPES, FP8):
            raise UserError(
                f"{self.source.directory}: tensor {name} has type {found.dtype}; supported: {', '.join([*DTYPES, FP8])}"
            )

    def _scale(self, name: str) -> float:
        found = self._stored(name)
        if found.dtype not in DTYPES or torch.Size(found.shape).numel() != 1:
            raise UserError(
                f"{self.source.directory}: tensor {name} has type {found.dtype} and shape {list(found.shape)}; "
                "FP8 weights are supported with one bf16, fp16 or fp32 scale per tensor"
            )
        return self._files[self._shard_of[name]].number(name)


def _safetensors_name(source: SourceConfig) -> str:
    """Type to which FP8 weights are dequantised, as safetensors names it."""
    names = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}
    if source.dtype not in names:
        raise UserError(
            f"{source.directory}/config.json: dtype {brief(source.dtype)} must be one of {', '.join(names)}"
        )
    return names[source.dtype]


def _refuse(directory: Path, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise UserError(f"{directory}: {what} {', '.join(sorted(names)[:_NAMED])}{more}")


def _open_shards(directory: Path) -> tuple[dict[str, SafetensorsFile], dict[str, str]]:
    """Opens all shards; returns them by file name, and the file name of every tensor."""
    index = directory / INDEX
    if not index.is_file():
        if not (directory / SINGLE).is_file():
            raise _no_weights(directory)
        files = {SINGLE: SafetensorsFile(directory / SINGLE)}
        return files, dict.fromkeys(files[SINGLE].tensors, SINGLE)
    listed = _weight_map(index)
    _refuse_two_models(directory, listed)
    files = {name: SafetensorsFile(directory / name) for name in sorted(set(listed.values()))}
    found: dict[str, str] = {}
    for file_name, file in files.items():
        for tensor in file.tensors:
            if tensor in found:
                raise UserError(f"{directory}: tensor {tensor} is duplicated, in {found[tensor]} and {file_name}")
            found[tensor] = file_name
    _refuse(directory, f"{INDEX} lists, but its shard lacks, tensor", [name for name in listed if name not in found])
    _refuse(directory, f"extra tensor (not in {INDEX})", [name for name in found if name not in listed])
    return files, found


def _refuse_two_models(directory: Path, listed: dict[str, str]) -> None:
    """`transformers` would read the single file, other tools the shards: which of them is the model is ambiguous."""
    others = sorted(set(listed.values()) - {SINGLE})
    if others and (directory / SINGLE).is_file():
        raise UserError(f"{directory}: has {SINGLE} and, listed in {INDEX}, {others[0]}; remove the wrong ones")


def _weight_map(index: Path) -> dict[str, str]:
    listed = read_object(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{index}: has no weight_map")
    for tensor, name in listed.items():
        # The index is untrusted: it may name files of this directory only.
        if not isinstance(name, str) or PurePath(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"{index}: tensor {tensor} is in {brief(name)}, which is not a .safetensors file of the same directory"
            )
    return listed


def _no_weights(directory: Path) -> UserError:
    pickled = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLED)
    if pickled:
        return UserError(
            f"{directory}: has only pickled weights ({pickled[0]}), which are refused because reading them can run any "
            "code; save the model as safetensors"
        )
    return UserError(f"{directory}: has no weights ({SINGLE} or {INDEX})")
