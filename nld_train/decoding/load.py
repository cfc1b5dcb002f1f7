"""From a path to an engine: the kind of a checkpoint, its tokenizer, and its weights on the ranks of a layout.

The description comes first and is cheap, so that an invalid request is refused before any weight is read. torch is
imported where weights are, so that a path that does not exist is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nld_train.config.compose import default_config
from nld_train.config.schema import Config, ModelConfig
from nld_train.data.chat.end_of_turn import end_of_turn_tokens
from nld_train.data.chat.prompt import read_template
from nld_train.data.tokenizer import load_tokenizer
from nld_train.data.tokenizer_files import TOKENIZER_FILES
from nld_train.data.vocabulary import refuse_other_tokenizer, training_hashes
from nld_train.decoding.layout import ONE_PROCESS, Layout
from nld_train.errors import UserError
from nld_train.model.adapter_files import read_shape, read_tensors, resolve_adapter
from nld_train.outside_json import brief, read_object
from nld_train.training.checkpoint.manifest import find_damage
from nld_train.training.checkpoint.paths import find_checkpoint, is_hugging_face

if TYPE_CHECKING:
    from checkpoint_convert.hugging_face import HuggingFaceWeights
    from nld_train.decoding.engines.engine import Engine

EXPORT_TYPE = "nemotron_labs_diffusion"


@dataclass
class Description:
    """Properties of a model before its weights are read: `engine.Limits`."""

    vocabulary_size: int
    mask_token_id: int
    context_length: int
    has_adapter: bool


@dataclass(frozen=True)
class Source:
    """A checkpoint that was found and described.

    Attributes:
        directory: of the checkpoint or export.
        description: properties against which a request is checked.
        tokenizer: of `transformers`.
        stop_tokens: ids that end a text; those that end a turn of the chat template are the last of them.
        block_length: tokens per block in its training.
        open: reads the weights; a context that yields the engine.
    """

    directory: Path
    description: Description
    tokenizer: Any
    stop_tokens: tuple[int, ...]
    block_length: int
    open: Callable[[], AbstractContextManager[Engine]]


def find_source(
    path: Path,
    tokenizer: str | None = None,
    adapter: Path | None = None,
    layout: Layout = ONE_PROCESS,
    chat_template: Path | None = None,
) -> Source:
    """Finds and describes the checkpoint or export of a path.

    Args:
        path: a run directory (its newest checkpoint is used), a checkpoint, an imported checkpoint, or an export.
        tokenizer: directory of a tokenizer that is used instead of the checkpoint's.
        adapter: directory of a drafter adapter that is used instead of the checkpoint's.
        layout: of the processes that share the model of a Megatron checkpoint.
        chat_template: file of a chat template that is used instead of the tokenizer's.

    Raises:
        UserError: the path is none of these, the checkpoint is damaged or has no tokenizer, or an adapter or the layout
            does not fit it.
    """
    directory = locate(path)
    if is_hugging_face(directory):
        if layout.processes > 1:
            raise UserError(
                f"--tensor, --pipeline: one process reads an export, and {path} is an export; nld-convert import "
                "converts it to a checkpoint that several processes can share"
            )
        return _for_chat(_find_export(directory, tokenizer, adapter), chat_template)
    return _for_chat(_find_megatron(directory, tokenizer, adapter, layout), chat_template)


def _for_chat(source: Source, chat_template: Path | None) -> Source:
    """The source with another chat template, where one is named; texts also end with the end of a turn."""
    if chat_template is not None:
        source.tokenizer.chat_template = read_template(chat_template)
    stops = dict.fromkeys([*source.stop_tokens, *end_of_turn_tokens(source.tokenizer)])
    return replace(source, stop_tokens=tuple(stops))


def locate(path: Path) -> Path:
    """The directory of the checkpoint or export that a path refers to; reads none of its files.

    Raises:
        UserError: there is none.
    """
    if is_hugging_face(path):
        return path
    directory = find_checkpoint(path)
    if directory is None:
        what = "holds no checkpoint" if path.is_dir() else "is no directory" if path.exists() else "does not exist"
        raise UserError(f"{path}: {what}; name a run, a checkpoint or an export")
    return directory


def _find_megatron(directory: Path, tokenizer: str | None, adapter: Path | None, layout: Layout) -> Source:
    from checkpoint_convert.checkpoints import read_record
    from checkpoint_convert.megatron import read_model
    from checkpoint_convert.source_config import stop_tokens

    if damage := find_damage(directory):
        raise UserError(f"{directory} is damaged: {damage}")
    model, record = read_model(directory), read_record(directory)
    config = layout.applied(replace(default_config(), model=model))
    adapter = resolve_adapter(directory, model, adapter)
    origin = record.origin
    stops = stop_tokens(origin, model.vocab_size) if origin is not None and origin.generation else ()
    loaded = _tokenizer(directory, tokenizer, record.tokenizers, record.data, model)
    if (template := record.chat_template) is not None:
        loaded.chat_template = template
    if record.chat_run is not None:
        # The fill of answers in training, whatever the original model stopped at: as in an export.
        stops = tuple(dict.fromkeys([*stops, model.eos_token_id]))
    return Source(
        directory=directory,
        description=_description(model, adapter),
        tokenizer=loaded,
        stop_tokens=stops or (model.eos_token_id,),
        block_length=record.block_size,
        open=partial(_open_megatron, directory, config, adapter),
    )


def _description(model: ModelConfig, adapter: Path | None) -> Description:
    return Description(
        vocabulary_size=model.vocab_size,
        mask_token_id=model.mask_token_id,
        context_length=model.max_position_embeddings,
        has_adapter=adapter is not None,
    )


@contextmanager
def _open_megatron(directory: Path, config: Config, adapter: Path | None) -> Iterator[Engine]:
    """This rank's part of Megatron's model, with weights that were saved under any layout."""
    from nld_train.library_warnings import ignore_known_warnings

    ignore_known_warnings()
    from nld_train.decoding.engines.megatron_engine import MegatronEngine
    from nld_train.model.adapters import DRAFTER, attach_adapter, load_adapter
    from nld_train.model.build import build_model, transformer_config
    from nld_train.model.rotary import RotaryEmbedding
    from nld_train.training.checkpoint import load as checkpoint
    from nld_train.training.loop.parallel import parallel_groups

    model = config.model
    with parallel_groups(config) as device:
        chunks = build_model(config, transformer_config(config, device), device)
        checkpoint.load(directory, chunks, None)
        if adapter is not None:
            attach_adapter(chunks, DRAFTER, read_shape(adapter, model))
            load_adapter(chunks, DRAFTER, read_tensors(adapter))
        with MegatronEngine(chunks, model, RotaryEmbedding(model, device)).decoding() as engine:
            yield engine


def _find_export(directory: Path, tokenizer: str | None, adapter: Path | None) -> Source:
    from checkpoint_convert.hugging_face import HuggingFaceWeights
    from checkpoint_convert.source_config import block_size, stop_tokens
    from nld_train.library_warnings import quiet_transformers

    quiet_transformers()
    config = read_object(directory / "config.json")
    if config.get("model_type") != EXPORT_TYPE:
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
        description=_description(model, adapter),
        tokenizer=_tokenizer(directory, tokenizer, (directory,), (), model),
        stop_tokens=stop_tokens(weights.source, model.vocab_size) or (model.eos_token_id,),
        block_length=block_size(directory / "config.json", config),
        open=partial(_open_export, weights, adapter),
    )


@contextmanager
def _open_export(weights: HuggingFaceWeights, adapter: Path | None) -> Iterator[Engine]:
    """The exported package's model and engine, from this checkout: no code of the directory is run."""
    import torch

    from checkpoint_convert.hf_package.cached_engine import CachedEngine
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
        yield CachedEngine(model.encoder, model.diffusion_head, model.drafter())


def _tokenizer(
    directory: Path, given: str | None, candidates: Sequence[Path], data: Sequence[str], model: ModelConfig
) -> Any:
    """The given tokenizer, if it is the checkpoint's, else that of the first candidate with one.

    Args:
        directory: of the checkpoint.
        given: directory of the tokenizer that the command line names.
        candidates: directories that may contain the checkpoint's tokenizer.
        data: prefixes of the sets that the checkpoint was trained on.
        model: of the checkpoint.
    """
    if given is not None:
        refuse_other_tokenizer(given, "--tokenizer", candidates, training_hashes(data), model)
        return load_tokenizer(given)
    for candidate in candidates:
        if any((candidate / name).is_file() for name in TOKENIZER_FILES):
            return load_tokenizer(str(candidate))
    searched = ", ".join(map(str, dict.fromkeys(candidates)))
    raise UserError(f"{directory}: no tokenizer was found (looked in {searched}); name one with --tokenizer")
