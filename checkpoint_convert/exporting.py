"""`nld-convert export`: from a Megatron checkpoint to a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from checkpoint_convert.checkpoint_paths import require_megatron, require_not_exported
from checkpoint_convert.checkpoints import Record, read_record
from checkpoint_convert.export_config import Export
from checkpoint_convert.export_files import write_descriptions
from checkpoint_convert.hf_package import package_files
from checkpoint_convert.lora import saved_lora
from checkpoint_convert.mapping import HEAD, Named, naming_of_format, part_shape, segments, tensors
from checkpoint_convert.megatron import MegatronWeights
from checkpoint_convert.safetensors_writer import SHARD_BYTES, Output, write_shards
from checkpoint_convert.staging import staged
from checkpoint_convert.weights import DTYPES, require_finite, row_blocks
from nld_train.config.schema import ModelConfig
from nld_train.data.vocabulary import holds_tokenizer, refuse_other_tokenizer, training_hashes
from nld_train.errors import UserError
from nld_train.model.adapter_files import CONFIG_FILE, TENSOR_FILE, copy_adapter, resolve_adapter
from nld_train.model.finite import is_finite
from nld_train.printable import say
from nld_train.progress import progress_bar


def export_checkpoint(
    source: Path,
    destination: Path,
    output_format: str,
    dtype: str | None = None,
    tokenizer: Path | None = None,
    adapter: Path | None = None,
    keep_lora: bool = False,
    license_name: str | None = None,
    languages: tuple[str, ...] = (),
    shard_bytes: int = SHARD_BYTES,
    report: Callable[[str], None] = say,
) -> None:
    """Converts a Megatron checkpoint.

    Args:
        source: a checkpoint, or a run directory, whose latest checkpoint is used.
        destination: must not exist; it is created complete or not at all.
        output_format: `nld` or `ministral3`.
        dtype: key of `DTYPES`; None keeps the type of each tensor.
        tokenizer: directory of the tokenizer; None for the one recorded with the checkpoint.
        adapter: directory of the drafter adapter; None for the one in the checkpoint, if any.
        keep_lora: export a LoRA beside the weights, in PEFT's files, and not added to them.
        license_name: identifier of the license in the model card; None for that of the original model.
        languages: codes of languages in the model card; empty for those of the original model.
        shard_bytes: maximum size of a shard.
        report: called with lines for the user.

    Raises:
        UserError: the source cannot be converted or the destination cannot be written; nothing is left behind.
    """
    require_not_exported(source)
    directory = require_megatron(source)
    weights, record = MegatronWeights(directory, merge_lora=not keep_lora), read_record(directory)
    if output_format == "ministral3" and record.clean_stream.block is not None:
        raise UserError(
            f"--format ministral3: {directory} was trained with diffusion.clean=block, and stock tools decode "
            "autoregressively; only diffusion decodes it: use --format nld"
        )
    lora = saved_lora(directory, weights.model)
    if keep_lora and lora is None:
        raise UserError(f"--keep-lora: {directory} has no LoRA; its stage trained all weights, or it was merged")
    if tokenizer is not None:
        _check_tokenizer(tokenizer, record, weights.model)
    adapter = _adapter(weights, output_format, adapter)
    if keep_lora and adapter is not None:
        raise UserError(
            f"--keep-lora: the drafter adapter in {adapter} is for whole weights; export without one of both"
        )
    # An import of a tied model without training since is exported tied, if the format supports tied heads.
    tied = output_format == "ministral3" and bool(record.imported.get("head_is_copy"))
    outputs = list(_outputs(weights, output_format, DTYPES[dtype] if dtype else None, tied))
    total = sum(output.bytes for output in outputs)
    with staged(destination, total) as temporary:
        with progress_bar(f"export {directory.name}", total, in_bytes=True) as written:
            write_shards(temporary, outputs, written, shard_bytes)
            weights.finish()
        name = str(outputs[0].dtype).removeprefix("torch.")
        export = Export(destination.name, output_format, name, tied, tokenizer, license_name, keep_lora, languages)
        notes = write_descriptions(temporary, record, weights.model, export)
        if output_format == "nld":
            _copy_package(temporary, vision=weights.model.vision is not None)
        if adapter is not None:
            copy_adapter(adapter, temporary)
        if keep_lora and lora is not None:
            lora.write(temporary, naming_of_format(output_format, weights.model))
    for line in notes:
        report(line)
    if lora is not None:
        report(
            f"the weights are those before the LoRA, which is in {destination / CONFIG_FILE} and {TENSOR_FILE}; "
            "transformers adds it where PEFT is installed, servers must be told to"
            if keep_lora
            else "the LoRA of the last stage was added to the weights; --keep-lora exports it beside them"
        )
    report(f"exported {directory} ({output_format}, {total / 1e9:.2f} GB) into {destination}")


def _outputs(weights: MegatronWeights, output_format: str, dtype: torch.dtype | None, tied: bool) -> Iterator[Output]:
    naming = naming_of_format(output_format, weights.model)
    for tensor in tensors(weights.model):
        if tensor.name == HEAD and tied:
            continue
        target = dtype or weights.dtype(tensor.name)
        shape = part_shape(tensor.part, weights.model)
        yield Output(naming.full(tensor.name), shape, target, _Blocks(weights, tensor, target))


class _Blocks:
    """The rows of a tensor in the export's type, block by block."""

    def __init__(self, weights: MegatronWeights, tensor: Named, dtype: torch.dtype) -> None:
        self.weights, self.tensor, self.dtype = weights, tensor, dtype

    def __call__(self) -> Iterator[Tensor]:
        model, name = self.weights.model, self.tensor.name
        row_bytes = 4 * torch.Size(part_shape(self.tensor.part, model)[1:]).numel()
        # By segments, so that the rows of a block are contiguous in the checkpoint and need no copy.
        for segment in segments(self.tensor.entry, model):
            if segment.part is not self.tensor.part:
                continue
            for start, stop in row_blocks(segment.part_start, segment.part_start + segment.rows, row_bytes):
                yield self._convert(self.weights.rows(name, start, stop))

    def _convert(self, rows: Tensor) -> Tensor:
        require_finite(rows, self.tensor.name, self.weights.directory)
        converted = rows.to(self.dtype)
        if self.dtype == torch.float16 and not is_finite(converted):
            raise UserError(f"{self.tensor.name}: has values beyond the range of fp16; export as bf16 or fp32")
        return converted


def _adapter(weights: MegatronWeights, output_format: str, given: Path | None) -> Path | None:
    """The adapter of the export, after checking it; the format for stock tools has none."""
    if output_format != "nld":
        if given is not None:
            raise UserError(f"--adapter {given}: only --format nld has a drafter adapter")
        return None
    return resolve_adapter(weights.directory, weights.model, given)


def _check_tokenizer(given: Path, record: Record, model: ModelConfig) -> None:
    if not holds_tokenizer(given):
        raise UserError(f"--tokenizer {given}: has no tokenizer files")
    refuse_other_tokenizer(str(given), "--tokenizer", record.tokenizers, training_hashes(record.data), model)


def _copy_package(temporary: Path, vision: bool) -> None:
    for name, text in package_files(vision).items():
        (temporary / name).write_text(text)
