"""The command `nld-launch`: copies the scripts that start runs, for who has installed a wheel and has no checkout."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from nld_train.commands.command import Command
from nld_train.errors import UserError
from nld_train.files import temporary_of
from nld_train.packaged import packaged_directory
from nld_train.printable import say

_FOLDER = "launch"
_DESCRIPTION = """Copies the launch scripts (torchrun on several nodes, Slurm, quickstart, container) into DIR/launch.

They work on the folder that they are copied into, as they do on a checkout: `nld-launch .`, then for instance
`sbatch --nodes 32 launch/slurm.sbatch experiment=paper_8b`.
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="an existing folder without launch/")


def _check(arguments: argparse.Namespace) -> None:
    directory: Path = arguments.directory
    if not directory.is_dir():
        raise UserError(f"{directory}: is no directory; name the folder in which runs are started")
    if (directory / _FOLDER).exists():
        raise UserError(f"{directory / _FOLDER}: exists already; remove it, or name another folder")


def _copy(arguments: argparse.Namespace) -> None:
    """Under another name first, so that an interrupted copy is not taken for a whole one."""
    target: Path = arguments.directory / _FOLDER
    temporary = temporary_of(target)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(
            packaged_directory(_FOLDER, "torchrun.sh"), temporary, ignore=shutil.ignore_patterns("__pycache__")
        )
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for script in target.glob("*.sh"):  # pip keeps no permissions of data
        script.chmod(script.stat().st_mode | 0o111)
    say(f"{target}: {', '.join(sorted(path.name for path in target.iterdir()))}")


main = Command("nld-launch", _DESCRIPTION, _add_arguments, _copy, _check)

if __name__ == "__main__":
    sys.exit(main())
