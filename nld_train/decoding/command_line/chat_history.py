"""The turns of a chat, as the prompt of the next answer."""

from __future__ import annotations

from collections.abc import Sequence

from nld_train.data.chat.prompt import ChatFormat, Message
from nld_train.data.pictures.expand import IMAGE
from nld_train.data.pictures.prompt import Part
from nld_train.errors import UserError

# What a user says: a text, or parts that are texts and pictures.
Content = str | list[Part]


class ChatHistory:
    """A conversation with the model.

    Args:
        chat_format: renders it.
        system: the system prompt; None for none.
        context_length: of the model.

    Attributes:
        system: as above; may be set between turns.
        turns: the user's messages with the answers to them.
    """

    def __init__(self, chat_format: ChatFormat, system: str | None, context_length: int) -> None:
        self.system = system
        self.turns: list[tuple[Content, str]] = []
        self._format, self._context_length = chat_format, context_length

    def check(self) -> None:
        """Raises `UserError` where the template fails on the system prompt."""
        self._format.text(self._messages([], "a"), "the system prompt")

    def prompt(self, text: Content, room: int) -> tuple[Sequence[int], int]:
        """The ids of the conversation with the user's next message, to be continued by the answer.

        Where they leave no room for it, the oldest turns are dropped for good.

        Args:
            text: the message, or its parts, some of which are pictures.
            room: new tokens that must fit behind it.

        Returns:
            The ids, with the pictures of all messages that are left, and the number of dropped turns.

        Raises:
            UserError: the message alone is too long, or the template fails.
        """
        for dropped in range(len(self.turns) + 1):
            _, ids = self._format.prompt(self._messages(self.turns[dropped:], text), "the conversation")
            if len(ids) + room <= self._context_length:
                del self.turns[:dropped]
                return ids, dropped
        raise UserError(
            f"the message is too long: after {len(ids)} tokens of prompt the context of {self._context_length} has no "
            f"room for --max-new-tokens {room}"
        )

    def _messages(self, turns: list[tuple[Content, str]], text: Content) -> list[Message]:
        system: list[tuple[str, Content]] = [] if self.system is None else [("system", self.system)]
        pairs: list[tuple[str, Content]] = [
            pair for user, answer in turns for pair in (("user", user), ("assistant", answer))
        ]
        return [{"role": role, "content": content} for role, content in (*system, *pairs, ("user", text))]


def shown_text(content: Content) -> str:
    """What a user says as one text, with `[IMG]` for each picture."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else IMAGE for part in content)
