"""Packs the conversations of a run into samples before it starts: rank 0 writes the packings, all ranks read them."""

from __future__ import annotations

from pathlib import Path

from nld_train.config.schema import Config
from nld_train.data.chat_set import ChatSet
from nld_train.data.conversation_lengths import PackingFacts
from nld_train.data.manifest import is_chat_set
from nld_train.data.packing import make_packing
from nld_train.data.sample_sets import conversation_packing, packings_folder, train_sources, validation_sources
from nld_train.data.samples import refuse_repeated_samples
from nld_train.errors import UserError
from nld_train.progress import progress_bar
from nld_train.training.checkpoint.collective_errors import on_first_rank
from nld_train.training.loop.run_files import file_errors


def pack_conversations(config: Config) -> list[str]:
    """Packs the chat sets of the stages that run, where that has not been done before; called by all ranks together.

    Returns:
        What became of the conversations of each set, for the log.

    Raises:
        UserError: on every rank: a set cannot be read, no conversation of it can be used, `run.dir` cannot be written,
            or a stage validates more samples than are held out.
    """
    sets = list(dict.fromkeys(_chat_sets(config)))
    if not sets:
        return []
    with file_errors(config.run.dir):
        found = on_first_rank(lambda: _packed(config, sets))
    if isinstance(found, UserError):
        raise found
    refuse_repeated_samples(config, chat=True)
    return list(dict.fromkeys(f"{prefix}: {facts.described()}" for (_, prefix), facts in zip(sets, found, strict=True)))


def _chat_sets(config: Config) -> list[tuple[str, str]]:
    """Stage and prefix of each chat set of the run."""
    return [
        (stage, source.prefix)
        for stage in config.run.stages
        for source in (*train_sources(config, stage), *validation_sources(config, stage))
        if is_chat_set(source.prefix)
    ]


def _packed(config: Config, sets: list[tuple[str, str]]) -> list[PackingFacts] | UserError:
    """The facts of each packing; an error is returned, so that all ranks raise it."""
    folder = packings_folder(Path(config.run.dir))
    try:
        found = []
        for stage, prefix in sets:
            with progress_bar(f"packing {Path(prefix).name}", 2 * ChatSet(prefix).documents, stays=False) as advance:
                packing = conversation_packing(config, stage)
                found.append(make_packing(prefix, packing, config.run.seed, folder, advance=advance))
        return found
    except UserError as error:
        return error
