"""The token sets of a stage, opened as samples: text, or conversations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil, lcm
from pathlib import Path
from typing import TYPE_CHECKING

from nld_train.config.schema import Config, SourceConfig
from nld_train.config.stage_kinds import kind_of, running_kinds
from nld_train.config.validate_layout import validate_layout
from nld_train.errors import UserError

if TYPE_CHECKING:
    from nld_train.data.conversation_lengths import ConversationPacking
    from nld_train.data.packed import SampleSet
    from nld_train.training.stages.kind import AnswerBlocks, StageKind

# `noisy_length: auto` is a multiple of this, and exceeds the mean need by this factor, since the need is an estimate.
# With an N that just suffices, the packing fills both streams to 98 % and more.
_MULTIPLE, _MARGIN = 128, 1.02

# Opens a set, by the run, the name of a stage and the prefix of the set.
OpenSet = Callable[[Config, str, str], "SampleSet"]


def train_sources(config: Config, stage: str) -> tuple[SourceConfig, ...]:
    """The training data of a stage."""
    own = config.stages[stage].train
    return config.data.train if own is None else own


def validation_sources(config: Config, stage: str) -> tuple[SourceConfig, ...]:
    """The held-out data of a stage."""
    own = config.stages[stage].validation
    return config.data.validation if own is None else own


def open_set(config: Config, stage: str, prefix: str) -> SampleSet:
    """A set as samples of a stage.

    Args:
        config: the run.
        stage: name of the stage.
        prefix: path of the set without `.bin` and `.idx`.

    Raises:
        UserError: it cannot be read, or holds no sample.
    """
    from nld_train.data.manifest import is_chat_set

    if not is_chat_set(prefix):
        from nld_train.data.packed import PackedSamples

        return PackedSamples(prefix, config.batch.sequence_length)
    from nld_train.data.conversations import PackedConversations

    return PackedConversations(
        prefix, conversation_packing(config, stage), config.run.seed, packings_folder(Path(config.run.dir))
    )


def require_kinds_of_data(config: Config) -> None:
    """Refuses texts where a stage is trained on conversations, the reverse, and conversations without borders.

    Raises:
        UserError: names the key, the set, and the kind of the stage.
    """
    from nld_train.data.manifest import is_chat_set

    for name, kind in running_kinds(config).items():
        stage, described = config.stages[name], f"stages.{name} of kind {kind.name}"
        keys = {
            "data.train" if stage.train is None else f"stages.{name}.train": train_sources(config, name),
            "data.validation" if stage.validation is None else f"stages.{name}.validation": validation_sources(
                config, name
            ),
        }
        for key, sources in keys.items():
            for source in sources:
                chat = is_chat_set(source.prefix)
                if kind.data == "conversations" and not chat:
                    cure = "prepare conversations with nld-data prepare --chat, and name them in"
                    own = key.replace("data.", f"stages.{name}.")
                    raise UserError(f"{key}: {source.prefix} is a set of texts, not for {described}; {cure} {own}")
                if kind.data == "text" and chat:
                    raise UserError(
                        f"{key}: {source.prefix} is a set of conversations, not for {described}; a stage of kind sft "
                        "is trained on them"
                    )
                if chat and config.data.documents == "ignore":
                    raise UserError(
                        f"data.documents=ignore: must be isolate, since {key} names conversations ({source.prefix}), "
                        "which do not see each other"
                    )


def packings_folder(run: Path) -> Path:
    """Where a run keeps the packings of its conversations, below `run.dir`."""
    return run / "packing"


def conversation_packing(config: Config, stage: str) -> ConversationPacking:
    """How a stage packs conversations into samples."""
    from nld_train.data.conversation_lengths import ConversationPacking

    return ConversationPacking(
        sequence_length=config.batch.sequence_length,
        noisy_length=kind_of(config.stages[stage]).noisy_length(config.batch.sequence_length),
        block_size=config.diffusion.block_size,
        blocks=config.diffusion.blocks,
        fill=config.diffusion.fill,
        long=config.data.long_conversations,
    )


def resolve_noisy_lengths(config: Config, world_size: int) -> Config:
    """The settings with a number for each `stages.NAME.noisy_length: auto` of a stage that learns from answers.

    It is a pure function of the settings and the sets. A stage whose sets do not exist keeps `auto`, as in a dry run
    without data; so does a drafter stage over text.

    Args:
        config: the run.
        world_size: number of processes, whose layout the lengths have to fit.

    Raises:
        UserError: a set cannot be read, or the layout does not divide a length.
    """
    stages = dict(config.stages)
    for name, kind in running_kinds(config).items():
        sources, blocks = train_sources(config, name), kind.answer_blocks(config, stages[name])
        known = sources and all(Path(f"{source.prefix}.manifest.json").exists() for source in sources)
        if blocks and stages[name].noisy_length == "auto" and known and _have_answers(kind, sources):
            stages[name] = replace(stages[name], noisy_length=_noisy_length(config, sources, blocks))
    if stages == config.stages:
        return config
    resolved = replace(config, stages=stages)
    validate_layout(resolved, world_size)
    return resolved


def _have_answers(kind: StageKind, sources: tuple[SourceConfig, ...]) -> bool:
    """Whether the samples of a stage are conversations, as they have to be where it takes nothing else."""
    from nld_train.data.manifest import is_chat_set

    return kind.data == "conversations" or all(is_chat_set(source.prefix) for source in sources)


def _noisy_length(config: Config, sources: tuple[SourceConfig, ...], blocks: AnswerBlocks) -> int:
    """Tokens of the noisy stream that the answers of the mean sample need, and some more."""
    from nld_train.data.conversation_lengths import mean_noisy_ratio

    parallel = config.parallel
    ratios = [mean_noisy_ratio(source.prefix, *blocks) for source in sources]
    weights = [source.weight for source in sources]
    mean = sum(ratio * weight for ratio, weight in zip(ratios, weights, strict=True)) / sum(weights)
    multiple = lcm(_MULTIPLE, 2 * parallel.context, parallel.tensor * parallel.context)
    return multiple * max(1, ceil(_MARGIN * mean * config.batch.sequence_length / multiple))
