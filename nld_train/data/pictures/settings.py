"""How the pictures of conversations are read and processed: a part of the request of `nld-data prepare`."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from nld_train.data.chat.rows import Conversation
from nld_train.data.pictures.decode import PictureLimits
from nld_train.data.pictures.processor import PictureProcessor
from nld_train.data.pictures.references import Reading, read_picture
from nld_train.data.records import Within


@dataclass(frozen=True)
class PictureSettings:
    """Settings of all pictures of a set.

    Attributes:
        processor: of the model.
        limits: of each picture.
    """

    processor: PictureProcessor
    limits: PictureLimits

    def read(self, conversation: Conversation, source: str) -> Conversation:
        """A conversation whose pictures are read and decoded once.

        Args:
            conversation: as its row says.
            source: file that it is in, from whose folder relative paths start; or the name of a `datasets` source.

        Raises:
            UserError: a picture cannot be read, is none, or exceeds a limit.
        """
        folder = source if os.path.isdir(source) else os.path.dirname(source)
        reading = Reading(folder, self.limits, self.processor.resized)
        messages = list(conversation.messages)
        for number, message in enumerate(messages):
            where = Within(conversation.where, f": message {number + 1} ({message.role})")
            pictures = tuple(read_picture(reference, reading, where) for reference in message.references)
            messages[number] = replace(message, pictures=pictures)
        return replace(conversation, messages=tuple(messages))
