"""The decode variants of a command line of `nld-decode`: a mode with its options and commit policy."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import get_args

from nld_train.decoding.algorithms.options import DecodeOptions, Mode
from nld_train.decoding.algorithms.stop_strings import stopping
from nld_train.decoding.command_line.request import value_errors_as_user_errors
from nld_train.decoding.load import Source
from nld_train.decoding.policies.policy_declaration import PolicyOf
from nld_train.decoding.policies.registry import DEFAULT, PolicySettings
from nld_train.errors import UserError


@dataclass(frozen=True)
class DecodeVariant:
    """A decode mode with its options and commit policy.

    Attributes:
        name: the mode, with a suffix if it drafts with the adapter, has another policy than the default, or an AR
            weight below 1.
        mode: of the decoder.
        options: of the decoder.
        policy: commit policy of diffusion; None in other modes.
    """

    name: str
    mode: Mode
    options: DecodeOptions
    policy: PolicyOf | None


def refuse_unread(arguments: Namespace) -> None:
    """Refuses options that the mode does not read, and invalid ones; a comparison reads all options.

    Raises:
        UserError: no mode; an option of another mode; an empty `--stop`.
    """
    if "" in arguments.stop:
        raise UserError("--stop: an empty text would stop every text at once")
    if arguments.compare:
        return
    if arguments.mode is None:
        raise UserError("--mode: choose one of ar, diffusion, linear, quadratic, or --compare all of them")
    with value_errors_as_user_errors():
        PolicySettings.of(vars(arguments)).check_mode(arguments.mode)
    if arguments.mode != "quadratic" and arguments.ar_weight != 1:
        raise UserError(f"--ar-weight: mode {arguments.mode!r} does not mix both heads; only quadratic does")


def variants_of(arguments: Namespace, source: Source, policy: PolicyOf) -> list[DecodeVariant]:
    """The variants to decode: one, or with `--compare` every mode, AR first, and with `--adapter` linear with it.

    Raises:
        ValueError: a setting out of its range.
    """
    if not arguments.compare:
        return [_variant(arguments, source, policy, arguments.mode, bool(arguments.adapter))]
    variants = [_variant(arguments, source, policy, mode) for mode in get_args(Mode)]
    if arguments.adapter:
        variants.append(_variant(arguments, source, policy, "linear", adapter=True))
    return variants


def _variant(
    arguments: Namespace, source: Source, policy: PolicyOf, mode: Mode, adapter: bool = False
) -> DecodeVariant:
    options = DecodeOptions(
        max_new_tokens=arguments.max_new_tokens,
        block_length=arguments.block_length,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seeds=arguments.seed,
        adapter=adapter,
        ar_weight=arguments.ar_weight if mode == "quadratic" else 1.0,
        **stopping(source.tokenizer, arguments.stop, source.stop_tokens),
    )
    return DecodeVariant(_name(arguments, mode, adapter), mode, options, policy if mode == "diffusion" else None)


def _name(arguments: Namespace, mode: Mode, adapter: bool) -> str:
    if adapter:
        return f"{mode} + adapter"
    if mode == "diffusion" and arguments.policy != DEFAULT:
        return f"{mode} + {arguments.policy}"
    if mode == "quadratic" and arguments.ar_weight != 1:
        return f"{mode}, AR weight {arguments.ar_weight:g}"
    return mode
