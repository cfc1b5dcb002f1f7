"""Results of `nld-decode` as JSON: one object per prompt, or per answer of a chat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nld_train.decoding.algorithms.outputs import Progress, per_forward
from nld_train.files import write_atomically
from nld_train.printable import printable_json
from nld_train.processes import rank


class Records:
    """The result of every prompt as a line of JSON.

    Args:
        printed: whether lines are printed, each as soon as its prompt is finished.
        output: file that all lines are written to at the end; None for none.
    """

    def __init__(self, printed: bool, output: str | None) -> None:
        self.printed = printed
        self.output = output
        self._lines: list[str] = []

    def add(self, record: dict[str, Any]) -> None:
        """Adds the result of a prompt."""
        line = printable_json(record)
        if self.output is not None:
            self._lines.append(line)
        if self.printed:
            print(line, flush=True)

    def write(self) -> None:
        """Writes the file; of several processes that decode together, rank 0 does."""
        if self.output is not None and rank() == 0:
            write_atomically(Path(self.output), "".join(f"{line}\n" for line in self._lines))


def record_of(name: str, prompt: str, tokenizer: Any, ended: Progress) -> dict[str, Any]:
    """One prompt as JSON with its own figures; `seconds` include the work on the other active sequences.

    Args:
        name: of the decode variant.
        prompt: its text.
        tokenizer: of `transformers`.
        ended: its final state.
    """
    new = len(ended.tokens)
    return {
        "mode": name,
        "prompt": prompt,
        "text": tokenizer.decode(list(ended.tokens), skip_special_tokens=True),
        "token_ids": list(ended.tokens),
        "new_tokens": new,
        "forwards": ended.forwards,
        "prefill": 1,
        "tokens_per_forward": per_forward(new, ended.forwards),
        "seconds": ended.seconds,
        "finish": ended.finish,
    }
