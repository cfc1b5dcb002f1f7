"""The token set and the process groups of the parity tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_sets import random_conversations, write_chat_manifest, write_chat_set
from parity_cases import Case
from process_groups import Outcomes
from shared import shared_folder
from tiny_runs import write_token_set


@pytest.fixture(scope="session")
def token_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A set of texts, `train`, and one of conversations beside it, `chat`."""
    return str(shared_folder(tmp_path_factory, "tokens", _write_sets) / "train")


def _write_sets(folder: Path) -> None:
    write_token_set(folder / "train", seed=1)
    conversations = random_conversations(2, 60, longest=4, largest_id=66)
    write_chat_manifest(write_chat_set(folder / "chat", conversations), conversations, vocabulary_size=67)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, token_set: str) -> Outcomes:
    """Of the cases of one file: another process may run the others."""
    items = [item for item in request.session.items if item.module is request.module]
    chosen = [item.callspec.params.get("case") for item in items if hasattr(item, "callspec")]
    cases = [case for case in chosen if isinstance(case, Case)]
    needed = [other for case in cases for other in (case, *case.references())]
    return Outcomes(needed, tmp_path_factory.mktemp("groups"), token_set)
