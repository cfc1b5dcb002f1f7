"""What a plan states about the data of a run, read from their indices. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nld_train.config.schema import Config
from nld_train.config.stage_kinds import running_kinds
from nld_train.data.endings import fill_facts
from nld_train.errors import UserError


def data_facts(config: Config) -> Iterator[tuple[str, str]]:
    """Names and texts of the facts: fill after documents of text, and the packing of conversations."""
    yield from fill_facts(config)
    yield from packing_facts(config)


def packing_facts(config: Config) -> Iterator[tuple[str, str]]:
    """Names and texts of the facts about each set of conversations, estimated where it is large.

    A set that does not exist has none: a run can be planned where its data are not.
    """
    for stage, kind in running_kinds(config).items():
        for source in config.stages[stage].train or config.data.train:
            name = f"{os.path.basename(source.prefix)} in stage {stage}"
            if os.path.isfile(f"{source.prefix}.manifest.json"):
                if (text := _described(config, stage, source.prefix)) is not None:
                    yield name, text
            elif kind.data == "conversations":
                yield name, f"not counted: {source.prefix}.manifest.json does not exist"


def _described(config: Config, stage: str, prefix: str) -> str | None:
    """The packing of a set; None for text. Raises nothing that a set can cause."""
    from nld_train.data.chat_set import ChatSet
    from nld_train.data.manifest import is_chat_set
    from nld_train.data.packing import estimate_facts
    from nld_train.data.sample_sets import conversation_packing

    try:
        if not is_chat_set(prefix):
            return None
        facts, total = estimate_facts(prefix, conversation_packing(config, stage)), ChatSet(prefix).documents
    except UserError as error:
        return f"not counted: {error}"
    every = facts.conversations == total
    return facts.described() if every else f"of {facts.conversations:,} of {total:,}: {facts.described()}"
