"""Checkpoints and exports as `nld_train.decoding.load.find_source` describes and opens them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from checkpoint_convert.checkpoints import Record, read_record
from checkpoint_convert.hugging_face import HuggingFaceWeights
from checkpoint_convert.megatron import read_model
from checkpoint_convert.source_config import block_size, clean_stream, stop_tokens
from nld_train.config.compose import default_config
from nld_train.data.pictures.prompt import PromptPictures
from nld_train.decoding.engines.engine import Engine
from nld_train.decoding.layout import Layout
from nld_train.decoding.load import Description, Source, find_tokenizer
from nld_train.decoding.open_megatron import open_megatron
from nld_train.errors import UserError
from nld_train.library_warnings import quiet_transformers
from nld_train.model.adapter_files import read_tensors, resolve_adapter
from nld_train.outside_json import brief, read_object
from nld_train.training.checkpoint.manifest import find_damage

EXPORT_TYPES = ("nemotron_labs_diffusion", "nemotron_labs_diffusion_vlm")


def find_megatron(directory: Path, tokenizer: str | None, adapter: Path | None, layout: Layout) -> Source:
    """A checkpoint of Megatron's layout; see `find_source`."""
    if damage := find_damage(directory):
        raise UserError(f"{directory} is damaged: {damage}")
    model, record = read_model(directory), read_record(directory)
    config = layout.applied(replace(default_config(), model=model))
    adapter = resolve_adapter(directory, model, adapter)
    origin = record.origin
    stops = stop_tokens(origin, model.vocab_size) if origin is not None and origin.generation else ()
    loaded = find_tokenizer(directory, tokenizer, record.tokenizers, record.data, model)
    if (template := record.chat_template) is not None:
        loaded.chat_template = template
    if record.chat_run is not None:
        # The fill of answers in training, whatever the original model stopped at: as in an export.
        stops = tuple(dict.fromkeys([*stops, model.eos_token_id]))
    return Source(
        directory=directory,
        description=Description.of(model, adapter, record.clean_stream),
        tokenizer=loaded,
        stop_tokens=stops or (model.eos_token_id,),
        block_length=record.block_size,
        open=partial(open_megatron, directory, config, adapter, record.clean_stream),
        pictures=PromptPictures.of(model.vision, _with_processors(directory, record)),
    )


def _with_processors(directory: Path, record: Record) -> tuple[Path, ...]:
    """Directories that may have the processor of a checkpoint's pictures: of the original model, or of the data."""
    origin = () if record.origin is None else (record.origin.directory,)
    return (directory, *origin, *record.tokenizers)


def find_export(directory: Path, tokenizer: str | None, adapter: Path | None) -> Source:
    """An export, or a Hugging Face directory like one; see `find_source`."""
    quiet_transformers()
    config = read_object(directory / "config.json")
    if config.get("model_type") not in EXPORT_TYPES:
        raise UserError(
            f"{directory}: a Hugging Face model of type {brief(config.get('model_type'))} is not decoded here; "
            "nld-convert import converts it to a checkpoint"
        )
    # The checks of the import: names, shapes and types of all tensors, in the files of this directory alone.
    weights = HuggingFaceWeights(directory)
    model = weights.model
    if "mask_token_id" not in weights.source.text:
        raise UserError(f"{directory}/config.json: mask_token_id is missing")
    adapter = resolve_adapter(directory, model, adapter)
    return Source(
        directory=directory,
        description=Description.of(model, adapter, clean_stream(directory / "config.json", config)),
        tokenizer=find_tokenizer(directory, tokenizer, (directory,), (), model),
        stop_tokens=stop_tokens(weights.source, model.vocab_size) or (model.eos_token_id,),
        block_length=block_size(directory / "config.json", config),
        open=partial(_open_export, weights, adapter),
        pictures=PromptPictures.of(model.vision, (directory,)),
    )


@contextmanager
def _open_export(weights: HuggingFaceWeights, adapter: Path | None) -> Iterator[Engine]:
    """The exported package's model and engine, from this checkout: no code of the directory is run."""
    from checkpoint_convert.open_export import load_export
    from nld_train.training.loop.parallel import resolve_device

    device = resolve_device("auto")
    if device.type == "cuda":
        # Under torchrun every process has its own device.
        torch.cuda.set_device(device)
    # Matrix products in bf16 are hundreds of times slower than in fp32 on CPUs.
    model = load_export(weights, device, None if device.type == "cuda" else torch.float32)
    if adapter is not None:
        read_tensors(adapter)  # refuses NaN and infinity
        try:
            model.load_drafter(adapter)
        except ImportError as error:
            raise UserError(str(error)) from error
    with torch.no_grad():
        yield model.engine()
