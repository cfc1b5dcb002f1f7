"""Samples of a chat set: whole conversations, packed into sequences of one length."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nld_train.data.chat_set import ChatSet, map_file
from nld_train.data.conversation_lengths import ConversationPacking
from nld_train.data.packed import PackedTokens
from nld_train.data.packing_files import CONVERSATION_DTYPE, CONVERSATIONS, SAMPLES, packing_directory, packing_key
from nld_train.data.pictures.store import StoredPicture
from nld_train.errors import UserError


class PackedConversations:
    """A chat set read as samples of whole conversations, which `make_packing` has packed.

    Args:
        prefix: path of the set without suffix.
        packing: how conversations become samples.
        seed: the run's seed.
        folder: of the packings of the run.

    Attributes:
        sequence_length: L.
        fingerprint: identity of the set and its packing.

    Raises:
        UserError: a file of the set or of its packing is missing or truncated.
    """

    def __init__(self, prefix: str, packing: ConversationPacking, seed: int, folder: str | os.PathLike[str]) -> None:
        self.prefix = prefix
        self.packing = packing
        self.sequence_length = packing.sequence_length
        self._seed, self._folder = seed, folder
        self._open()

    def _open(self) -> None:
        self.fingerprint: str = packing_key(self.prefix, self.packing, self._seed)
        directory = packing_directory(self.prefix, self._folder, self.fingerprint)
        self._chat = ChatSet(self.prefix)
        try:
            self._conversations = map_file(str(directory / CONVERSATIONS), CONVERSATION_DTYPE)
            self._borders = map_file(str(directory / SAMPLES), np.dtype(np.int64))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"{directory}, the packing of {self.prefix}, cannot be read ({reason}): start the run again, which "
                "makes it"
            ) from error
        if not len(self._borders) or self._borders[-1] != len(self._conversations):
            raise UserError(f"{directory} is damaged: its files are of different packings; start the run again")

    def __getstate__(self) -> tuple[Any, ...]:
        return self.prefix, self.packing, self._seed, self._folder

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def inputs_of(self, packed: PackedTokens) -> list[NDArray[np.float32]]:
        """The tower's input of the pictures of a sample, float32 `[3, height, width]` each.

        Raises:
            UserError: a picture is damaged.
        """
        return [self._chat.input_of(picture) for picture in packed.pictures]

    def __len__(self) -> int:
        """Samples in one epoch."""
        return len(self._borders) - 1

    def read(self, index: int) -> PackedTokens:
        """Reads one sample: its conversations, and after them padding, which is a document of its own.

        Padding repeats the last token, so that it is an id of the model whatever the vocabulary.

        Args:
            index: which sample, `0 <= index < len(self)`.

        Raises:
            IndexError: no such sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in {self.prefix}")
        total, position = self.sequence_length + 1, 0
        tokens, documents = np.zeros(total, np.int64), np.zeros(total, np.int64)
        answers, pictures = np.zeros(total, np.bool_), list[StoredPicture]()
        conversations = self._conversations[self._borders[index] : self._borders[index + 1]].tolist()
        for ordinal, (start, length) in enumerate(conversations):
            begin = position
            pieces = self._chat.pieces(start, length, self.sequence_length)
            assert pieces is not None, "a conversation that cannot be shortened is in no sample"
            for piece in pieces:
                end = position + piece[1]
                tokens[position:end], answers[position:end] = self._chat.read(*piece)
                pictures += [replace(each, begin=each.begin + position) for each in self._chat.pictures(*piece)]
                position = end
            documents[begin:position] = ordinal
        tokens[position:], documents[position:] = tokens[position - 1], len(conversations)
        return PackedTokens(tokens, documents, answers, tuple(pictures))
