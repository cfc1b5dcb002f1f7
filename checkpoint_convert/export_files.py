"""The files of an export beside weights and code: configuration, tokenizer, model card and terms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checkpoint_convert.card_metadata import CARD, LICENSES, Origins, origins
from checkpoint_convert.checkpoints import Record
from checkpoint_convert.export_config import Export, export_config, generation_config, vllm_positions
from checkpoint_convert.model_card import model_card
from checkpoint_convert.processor_files import write_processor
from nld_train.config.schema import ModelConfig
from nld_train.data.chat.end_of_turn import end_of_turn_tokens
from nld_train.data.chat.run_template import own_template, with_template
from nld_train.data.tokenizer import load_tokenizer
from nld_train.data.tokenizer_files import read_tokenizer, write_tokenizer


def write_descriptions(directory: Path, record: Record, model: ModelConfig, export: Export) -> list[str]:
    """Writes them into the directory of an export.

    Args:
        directory: of the export.
        record: the records of the checkpoint.
        model: its model.
        export: what is exported.

    Returns:
        Lines for the user about what is missing, or from elsewhere than expected.
    """
    files = _tokenizer_files(record, export.tokenizer)
    write_tokenizer(files, directory)
    # Before there is a configuration, of whose model type transformers would print a warning.
    ends = end_of_turn_tokens(load_tokenizer(str(directory))) if files and record.chat_run is not None else ()
    _write_json(directory / "config.json", export_config(record, model, export))
    _write_json(directory / "generation_config.json", generation_config(record, model, export.output_format, ends))
    if model.vision is not None:
        write_processor(directory, model.vision, None if record.origin is None else record.origin.directory)
    _copy_licenses(record, directory)
    known = origins(*record.origin_names)
    chat = record.chat_run is not None and own_template(files) is not None
    (directory / CARD).write_text(model_card(record, model, export, known, chat))
    return list(_notes(record, model, files, known, export))


def _tokenizer_files(record: Record, given: Path | None) -> dict[str, bytes]:
    """The tokenizer of the export: the given one, else the checkpoint's; with the template of its conversations."""
    found = (read_tokenizer(path) for path in ((given,) if given is not None else record.tokenizers))
    files = next(filter(None, found), {})
    template = record.chat_template
    return files if template is None or not files else with_template(files, template)


def _copy_licenses(record: Record, temporary: Path) -> None:
    if record.origin is not None:
        for name in LICENSES:
            if (record.origin.directory / name).is_file():
                shutil.copyfile(record.origin.directory / name, temporary / name)


def _notes(
    record: Record, model: ModelConfig, files: dict[str, bytes], known: Origins, export: Export
) -> Iterator[str]:
    """Lines for the user about what the export lacks, or has from elsewhere than expected."""
    if not files:
        yield "no tokenizer is known for this checkpoint: name one with --tokenizer to include it in the export"
    elif record.chat_run is not None and own_template(files) is None:
        yield "the tokenizer has no chat template, and that of the training data does not exist any more"
    elif export.tokenizer is not None and own_template(files) != own_template(read_tokenizer(export.tokenizer)):
        yield f"the chat template is that of the training, and not that of --tokenizer {export.tokenizer}"
    if export.output_format == "ministral3" and (positions := vllm_positions(model)) is not None:
        yield (
            f"vLLM has rotary angles for factor x original_max_position_embeddings = {positions} positions alone, and "
            f"writes nonsense beyond them: start it with --max-model-len {positions}"
        )
    made_of_others = record.origin is not None or record.chat_run is not None
    if made_of_others and export.license is None and "license" not in known.license:
        yield "the model card names no license: --license names one"
    if record.lost is not None:
        yield (
            f"{record.lost}, from which the weights came, no longer exists: the stop token is that of the model's "
            f"settings ({model.eos_token_id}), and its generation config, if it had one, is not exported"
        )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
