"""The chat template of a request: that of the tokenizer, the default one, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nld_train.data.chat.default import default_template, picture_template
from nld_train.data.chat.prompt import read_template
from nld_train.data.chat.template import ChatTemplate, check_template
from nld_train.data.pictures.expand import IMAGE_TOKENS
from nld_train.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from nld_train.errors import UserError

DEFAULT = "default"
_GIVE = f"give --chat-template FILE, or --chat-template {DEFAULT}"


def chosen_template(
    given: str | None, arguments: dict[str, Any], tokenizer: str | None, pictures: bool = False
) -> ChatTemplate:
    """The template with which conversations are rendered.

    Args:
        given: a file, `default`, or None for the tokenizer's own.
        arguments: of the template, for every conversation.
        tokenizer: directory of the tokenizer; None for one that is made here, whose own template is the default one.
        pictures: whether conversations may have pictures.

    Raises:
        UserError: there is no template or no tokenizer, or the template cannot be compiled.
    """
    if tokenizer is None:
        pad, begin, end, mask = SPECIAL_TOKENS
        variables = {"pad_token": pad, "bos_token": begin, "eos_token": end, "mask_token": mask}
        special: tuple[str, ...] = (*SPECIAL_TOKENS, *(IMAGE_TOKENS if pictures else ()))
        source = _given(given or DEFAULT, pictures)
    else:
        loaded = load_tokenizer(tokenizer)
        variables = {name: value for name, value in loaded.special_tokens_map.items() if isinstance(value, str)}
        added = {token.content for token in loaded.added_tokens_decoder.values() if token.special}
        special = tuple(sorted((added | set(loaded.all_special_tokens)) - {loaded.unk_token}))
        source = _own(loaded, tokenizer) if given is None else _given(given, pictures)
        if given == DEFAULT and not variables.keys() >= {"bos_token", "eos_token"}:
            raise UserError(
                f"--chat-template {DEFAULT} is made of bos_token and eos_token, of which the tokenizer in {tokenizer} "
                "names not both: give --chat-template FILE"
            )
    check_template(source, f"the template of {tokenizer}" if given is None else given)
    return ChatTemplate(source, variables | arguments, special)


def _given(name: str, pictures: bool) -> str:
    """The text of the default template or of a file."""
    if name == DEFAULT:
        return picture_template() if pictures else default_template()
    return read_template(Path(name))


def _own(tokenizer: Any, directory: str) -> str:
    """The only template of a tokenizer."""
    source = tokenizer.chat_template
    if isinstance(source, dict):
        if len(source) > 1 or DEFAULT not in source:
            names = ", ".join(sorted(source))
            raise UserError(
                f"the tokenizer in {directory} has several chat templates ({names}): write the one to use to a file, "
                "and give --chat-template FILE"
            )
        source = source[DEFAULT]
    if not source:
        raise UserError(f"the tokenizer in {directory} has no chat template: {_GIVE}")
    return str(source)
