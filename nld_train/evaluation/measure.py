"""What the reports on decoding share: figures of a result, and where they are written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nld_train.decoding import DecodeResult, Mode
from nld_train.decoding.algorithms.statistics import accepted_per_cycle, agreement, tokens_per_forward
from nld_train.errors import UserError
from nld_train.files import write_atomically

Figures = dict[str, Any]
# Most logits that a step may return: 1 GiB of float32.
LOGITS_AT_ONCE = 2**28


def rows_at_once(mode: Mode, block_length: int, vocabulary_size: int) -> int:
    """How many rows of a batch keep a decode step within `LOGITS_AT_ONCE`; at least one.

    A step of quadratic self-speculation has logits for k drafts and k * k masks, one of the others for a block at most.
    """
    positions = {"ar": 1, "quadratic": block_length * (block_length + 1)}.get(mode, block_length)
    return max(1, LOGITS_AT_ONCE // (positions * vocabulary_size))


def figures(result: DecodeResult, reference: DecodeResult) -> Figures:
    """What a result says of its way to decode.

    Args:
        result: of some prompts.
        reference: AR decoding of the same prompts.

    Returns:
        `tokens_per_forward`; `accepted_per_pass` of a denoising or verify pass, None where there was none; `agreement`
        with AR; and the counts behind them.
    """
    return {
        "tokens_per_forward": tokens_per_forward(result),
        "accepted_per_pass": accepted_per_cycle(result),
        "agreement": agreement(result.token_ids, reference.token_ids),
        "new_tokens": sum(result.new_tokens),
        "forwards": sum(result.sequence_forwards),
    }


def shown(value: float | None, form: str = ".2f") -> str:
    """A figure in a table."""
    return "-" if value is None else format(value, form)


def check_writable(*paths: str | None) -> None:
    """Refuses a file that cannot be written, before anything is computed.

    Raises:
        UserError: its folder is not there.
    """
    for path in paths:
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise UserError(f"{path}: there is no folder {Path(path).absolute().parent}")


def write_json(path: str | None, content: Figures) -> None:
    """Writes figures where a path is given."""
    if path is not None:
        write_atomically(Path(path), json.dumps(content, indent=1) + "\n")


@contextmanager
def plot(path: str, columns: int, width: float = 6.0) -> Iterator[Any]:
    """A row of matplotlib axes, array `[columns]`, saved as PNG at the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width * columns, 4.5), constrained_layout=True, squeeze=False)
    yield axes[0]
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(path, format="png", dpi=110)
    plt.close(figure)
