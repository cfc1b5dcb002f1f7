"""Small chat sets on disk: Megatron's `.bin/.idx` and the bits beside it, with random tokens and borders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nld_train.data.manifest import FORMAT_VERSION, ChatManifest, Manifest
from nld_train.data.packed import indexed_dataset_module, quick_fingerprint

END = 2


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation.

    Attributes:
        role: `system`, `user` or `assistant`.
        tokens: its tokens, special ones included.
        answer: how many of the last ones belong to an answer.
    """

    role: str
    tokens: list[int]
    answer: int = 0


Conversation = Sequence[Turn]


def random_conversation(generator: np.random.Generator, turns: int, longest: int, largest_id: int = 259) -> list[Turn]:
    """A system prompt, or none, and so many turns of the user, each with an answer, of up to `longest` tokens each.

    Prompts and answers have no token in common.
    """
    first_of_answers = (largest_id + 6) // 2

    def ids(first: int, after: int, least: int) -> list[int]:
        return generator.integers(first, after, int(generator.integers(least, longest + 1))).tolist()

    def prompt() -> list[int]:
        return ids(4, first_of_answers, 1)

    found = [Turn("system", prompt())] if generator.random() < 0.5 else []
    for _ in range(turns):
        found.append(Turn("user", prompt()))
        answer = [*ids(first_of_answers, largest_id + 1, 0), END]
        found.append(Turn("assistant", [5, *answer], len(answer)))
    return found


def random_conversations(seed: int, count: int, longest: int = 12, largest_id: int = 259) -> list[list[Turn]]:
    """Conversations of one to four exchanges."""
    generator = np.random.default_rng(seed)
    return [random_conversation(generator, int(generator.integers(1, 5)), longest, largest_id) for _ in range(count)]


def tokens_of(conversation: Conversation) -> list[int]:
    """The tokens of a conversation."""
    return [token for turn in conversation for token in turn.tokens]


def answers_of(conversation: Conversation) -> list[bool]:
    """Which of them belong to answers."""
    return [index >= len(turn.tokens) - turn.answer for turn in conversation for index in range(len(turn.tokens))]


def write_chat_set(prefix: Path, conversations: Sequence[Conversation], turns: bool = True) -> str:
    """Writes a chat set with Megatron's own builder, and the bits beside it; returns its prefix."""
    builder = indexed_dataset_module().IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for conversation in conversations:
        tokens = np.array(tokens_of(conversation), dtype=np.uint16)
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(f"{prefix}.idx")
    answers = [bit for conversation in conversations for bit in answers_of(conversation)]
    starts = [
        turn.role == "user" and index == 0
        for conversation in conversations
        for turn in conversation
        for index in range(len(turn.tokens))
    ]
    for name, bits in (("answers", answers), ("turns", starts))[: 1 + turns]:
        np.packbits(np.array(bits, dtype=bool), bitorder="little").tofile(f"{prefix}.{name}.bin")
    return str(prefix)


def write_chat_manifest(prefix: str, conversations: Sequence[Conversation], vocabulary_size: int = 260) -> None:
    """Writes the manifest of a chat set that `write_chat_set` has written."""
    answers = [bit for conversation in conversations for bit in answers_of(conversation)]
    template = "{{ messages }}"
    Path(f"{prefix}.chat_template.jinja").write_text(template)
    lengths = [len(tokens_of(conversation)) for conversation in conversations]
    chat = ChatManifest(
        template_hash=hashlib.sha256(template.encode()).hexdigest(),
        answers="all",
        conversations=len(conversations),
        answer_tokens=sum(answers),
        longest=max(lengths),
    )
    Manifest(
        format_version=FORMAT_VERSION,
        sources=[],
        arguments={},
        request="",
        tokenizer="tokenizer",
        tokenizer_hash="",
        vocabulary_size=vocabulary_size,
        end_of_document=None,
        documents=len(conversations),
        tokens=sum(lengths),
        largest_id=vocabulary_size - 1,
        dtype="uint16",
        fingerprint="",
        quick_fingerprint=quick_fingerprint(prefix),
        versions={},
        chat=chat,
    ).write(f"{prefix}.manifest.json")
    counts = np.bincount([token for conversation in conversations for token in tokens_of(conversation)])
    np.save(f"{prefix}.counts.npy", counts)
