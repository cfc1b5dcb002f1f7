"""Token ids as text on a terminal, with masked runs marked."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from nld_train.data.manifest import Manifest, require_tokenizer
from nld_train.data.tokenizer import load_tokenizer

_MASKED = "bold white on red"


class TokenText:
    """Token ids as readable text; as numbers where no tokenizer is known.

    Args:
        tokenizer: of `transformers`, or None.
        plain: whether there are no colours.
    """

    def __init__(self, tokenizer: Any | None, plain: bool) -> None:
        self._tokenizer = tokenizer
        self._plain = plain

    def of(self, tokens: NDArray[np.int64], masked: NDArray[np.bool_], style: str = "") -> Text:
        """A run of tokens; masked ones on a red background, or in brackets without colours.

        Args:
            tokens: ids, `[tokens]`.
            masked: bool `[tokens]`.
            style: of tokens that are not masked.
        """
        text = Text()
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
