"""The decode variants of a command line of `nld-decode`: a mode with its options and commit policy."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import get_args

from nld_train.decoding.algorithms.options import DecodeOptions, Mode
from nld_train.decoding.algorithms.stop_strings import stopping
from nld_train.decoding.load import Source
from nld_train.decoding.policies.policy_declaration import PolicyOf
from nld_train.decoding.policies.registry import DEFAULT

# Options with a default of the decoder, and their names there.
_DEFAULTED = {
    "top_k": "top_k",
    "top_p": "top_p",
    "seed": "seeds",
    "ar_weight": "ar_weight",
    "cuda_graphs": "cuda_graphs",
    "block_start": "block_start",
}


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


def chat_variants(arguments: Namespace, source: Source, policy: PolicyOf) -> dict[Mode, DecodeVariant]:
    """The variant of every mode, between which a chat switches; linear drafts with the adapter of `--adapter`.

    Raises:
        ValueError: a setting out of its range.
    """
    return {
        mode: _variant(arguments, source, policy, mode, adapter=bool(arguments.adapter) and mode == "linear")
        for mode in get_args(Mode)
    }


def _variant(
    arguments: Namespace, source: Source, policy: PolicyOf, mode: Mode, adapter: bool = False
) -> DecodeVariant:
    given = {name: value for key, name in _DEFAULTED.items() if (value := getattr(arguments, key)) is not None}
    if mode != "quadratic":
        given.pop("ar_weight", None)
    if mode != "diffusion":
        given.pop("block_start", None)
    options = DecodeOptions(
        max_new_tokens=arguments.max_new_tokens,
        block_length=source.block_length if arguments.block_length is None else arguments.block_length,
        temperature=arguments.temperature,
        adapter=adapter,
        **given,
        **stopping(source.tokenizer, arguments.stop, source.stop_tokens),
    )
    return DecodeVariant(_name(arguments, mode, adapter), mode, options, policy if mode == "diffusion" else None)


def _name(arguments: Namespace, mode: Mode, adapter: bool) -> str:
    if adapter:
        return f"{mode} + adapter"
    if mode == "diffusion" and arguments.policy not in (None, DEFAULT):
        return f"{mode} + {arguments.policy}"
    if mode == "quadratic" and arguments.ar_weight not in (None, 1):
        return f"{mode}, AR weight {arguments.ar_weight:g}"
    return mode
