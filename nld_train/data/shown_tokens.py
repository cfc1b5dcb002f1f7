"""Token ids as text on a terminal, with masked runs marked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from nld_train.config.image_tokens import ImageTokenConfig, image_tokens
from nld_train.data.manifest import Manifest, require_tokenizer
from nld_train.data.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from nld_train.data.pictures.store import StoredPicture

_MASKED, _PICTURE = "bold white on red", "bold magenta"


class TokenText:
    """Token ids as readable text; as numbers where no tokenizer is known.

    Args:
        tokenizer: of `transformers`, or None.
        plain: whether there are no colours.
        pictures: tokens that are shown as one text instead, by the first of them: how many there are, and the text.
    """

    def __init__(
        self, tokenizer: Any | None, plain: bool, pictures: Mapping[int, tuple[int, str]] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._plain = plain
        self._pictures = dict(pictures or {})

    def with_pictures(self, tokens: ImageTokenConfig | None, pictures: Sequence[StoredPicture]) -> TokenText:
        """The same for a text in which the tokens of pictures are shown as their sizes.

        Args:
            tokens: of the set; None where it has no pictures.
            pictures: of the text.
        """
        shown = {}
        for number, picture in enumerate(pictures if tokens is not None else ()):
            assert tokens is not None
            size = picture.height, picture.width
            count = len(image_tokens(tokens, size))
            described = f"[picture {number}: {picture.width} x {picture.height} pixels, {count} tokens]"
            shown[picture.begin] = count, described
        return TokenText(self._tokenizer, self._plain, shown)

    def of(
        self, tokens: NDArray[np.int64], masked: NDArray[np.bool_], style: str = "", begin: int | None = None
    ) -> Text:
        """A run of tokens; masked ones on a red background, or in brackets without colours.

        Args:
            tokens: ids, `[tokens]`.
            masked: bool `[tokens]`.
            style: of tokens that are not masked.
            begin: position of the first of them in the text, where pictures may be among them.
        """
        text = Text()
        if begin is not None:
            for start, (count, described) in self._pictures.items():
                if begin <= start < begin + len(tokens):
                    before = slice(0, start - begin)
                    text.append_text(self.of(tokens[before], masked[before], style))
                    text.append(described, style=_PICTURE)
                    tokens, masked = tokens[start - begin + count :], masked[start - begin + count :]
                    begin = start + count
        borders = [0, *(np.flatnonzero(np.diff(masked)) + 1), len(tokens)]
        for begin, end in pairwise(borders if len(tokens) else []):
            run = self._decode(tokens[begin:end].tolist())
            if masked[begin]:
                text.append(f"⟦{run}⟧" if self._plain else run, style=_MASKED)
            else:
                text.append(run, style=style)
        return text

    def _decode(self, ids: list[int]) -> str:
        if self._tokenizer is None:
            return " ".join(map(str, ids)) + " "
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def token_text(prefix: str, manifest: Manifest | None, given: str | None, plain: bool) -> TokenText:
    """The text of the tokens of a set.

    Args:
        prefix: of the set.
        manifest: of the set, or None.
        given: directory of the tokenizer; None for the one that the manifest names, if it still exists.
        plain: whether there are no colours.

    Raises:
        UserError: it is another tokenizer than the set's, or cannot be read.
    """
    directory = given
    if manifest is not None:
        directory = directory or manifest.tokenizer_directory(prefix)
        if given is None and not os.path.isdir(directory):
            return TokenText(None, plain)
        require_tokenizer(prefix, manifest, directory, "--tokenizer")
    return TokenText(None if directory is None else load_tokenizer(directory), plain)
