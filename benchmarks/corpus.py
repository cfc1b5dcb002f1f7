"""The quickstart's corpus for benchmarks that read it, prepared on demand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from nld_train.config.compose import compose_config
from nld_train.errors import UserError


@contextmanager
def with_corpus(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The settings of a run. If they use the default corpus and it is missing, it is prepared in a temporary folder.

    The folder is removed at the end; the working tree is not changed.
    """
    sources = compose_config(overrides).data.train
    missing = [source.prefix for source in sources if not Path(f"{source.prefix}.idx").is_file()]
    if not missing or sources != compose_config().data.train:
        yield list(overrides)
        return
    with TemporaryDirectory(prefix="nld-corpus-") as folder:
        print(f"{missing[0]}: not prepared yet; preparing it in {folder}, for this run only", flush=True)
        prepare(Path(folder))
        parts = [f"data.{part}=[{{prefix: {folder}/stdlib-{part}, weight: 1}}]" for part in ("train", "validation")]
        yield [*parts, f"data.tokenizer={folder}/tokenizer", *overrides]


def prepare(folder: Path) -> None:
    """Runs `nld-data prepare stdlib`."""
    command = [sys.executable, "-m", "nld_train.commands.data", "prepare", "stdlib", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    if done.returncode != 0:
        raise UserError(f"nld-data prepare stdlib: {done.stderr.strip()[-500:]}")
