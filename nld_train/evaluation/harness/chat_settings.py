"""Whether and how an evaluation puts its prompts into a chat template, by the names of lm_eval."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nld_train.data.chat.prompt import parse_arguments
from nld_train.errors import UserError


@dataclass(frozen=True)
class ChatSettings:
    """Prompts as conversations.

    Attributes:
        apply_chat_template: whether prompts are put into the tokenizer's template, or the name of one of several.
        system_instruction: the system prompt, before a task's own description; None for none.
        fewshot_as_multiturn: whether examples are turns before the question; otherwise all are one message.
        template: file of a template that is used instead of the tokenizer's.
        arguments: of the template.
    """

    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = False
    template: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: Namespace, default: bool) -> ChatSettings:
        """From a command line of `nld-eval`.

        Args:
            arguments: of the command.
            default: whether the list of tasks wants a chat template.

        Raises:
            UserError: an option that nothing reads without a template.
        """
        applied = arguments.apply_chat_template or default
        for name in ("fewshot_as_multiturn", "chat_template", "chat_template_args"):
            if getattr(arguments, name) and not applied:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option}: prompts are put into no chat template; give --apply-chat-template")
        multiturn = applied if arguments.fewshot_as_multiturn is None else arguments.fewshot_as_multiturn
        return cls(
            applied,
            arguments.system_instruction,
            bool(multiturn),
            None if arguments.chat_template is None else Path(arguments.chat_template),
            parse_arguments(arguments.chat_template_args),
        )

    @property
    def name(self) -> str | None:
        """Of one of several templates of the tokenizer; None for the default one."""
        return self.apply_chat_template if isinstance(self.apply_chat_template, str) else None

    def record(self) -> dict[str, Any]:
        """The settings as JSON, for the results."""
        return {
            "apply_chat_template": self.apply_chat_template,
            "system_instruction": self.system_instruction,
            "fewshot_as_multiturn": self.fewshot_as_multiturn,
            "chat_template": None if self.template is None else str(self.template),
            "chat_template_args": dict(self.arguments),
        }
