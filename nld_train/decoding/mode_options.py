"""Which decode modes read which options. An option that was given and that no mode reads is refused. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nld_train.decoding.policies.policy_declaration import option
from nld_train.decoding.policies.registry import PolicySettings
from nld_train.errors import UserError

# Defaults of --max-new-tokens: of a text, and of an answer in a chat.
MAX_NEW_TOKENS, CHAT_MAX_NEW_TOKENS = 128, 1024


@dataclass(frozen=True)
class ModeOption:
    """An option that some decode modes read.

    Attributes:
        name: the keyword; with dashes for underscores, the option on the command line.
        readers: the modes.
        lack: what another mode does not have or do, for the message.
    """

    name: str
    readers: tuple[str, ...]
    lack: str

    def refuse_unread(self, modes: Sequence[str]) -> None:
        """Refuses the option for modes of which none reads it.

        Raises:
            UserError: none does.
        """
        if set(modes) & set(self.readers):
            return
        who = f"mode {modes[0]!r} {self.lack}" if len(modes) == 1 else f"none of the modes {', '.join(modes)} reads it"
        *others, last = self.readers
        does = f"{', '.join(others)} and {last} do" if others else f"{last} does"
        raise UserError(f"{option(self.name)}: {who}; only {does}")


OPTIONS = (
    ModeOption("block_length", ("diffusion", "linear", "quadratic"), "has no blocks"),
    ModeOption("block_lengths", ("diffusion", "linear", "quadratic"), "has no blocks"),
    ModeOption("block_start", ("diffusion",), "does not denoise blocks"),
    ModeOption("adapter", ("linear",), "does not draft with one"),
    ModeOption("ar_weight", ("quadratic",), "does not mix both predictions"),
    ModeOption("likelihood", ("diffusion",), "cannot choose between two likelihoods"),
    ModeOption("samples", ("diffusion",), "computes no bound of likelihoods"),
)


def refuse_unread(settings: Mapping[str, Any], modes: Sequence[str]) -> None:
    """Refuses options that none of the modes reads.

    Args:
        settings: options by name; None, or False for a switch, where one was not given.
        modes: decode modes.

    Raises:
        UserError: an option that was given and is not read.
        ValueError: an unknown policy, or an argument of one out of its range.
    """
    policy = PolicySettings.of(settings)
    denoising = (
        ModeOption(name, policy.declaration.modes, "has no denoising passes")
        for name, value in policy.record().items()
        if value is not None
    )
    for one in (*denoising, *OPTIONS):
        if settings.get(one.name) not in (None, False):
            one.refuse_unread(modes)
