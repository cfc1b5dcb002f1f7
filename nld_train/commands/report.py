"""The command `nld-report`: a page with the curves of a run, and texts that one watches being decoded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nld_train.commands.command import Command, Imported, utf8

_DESCRIPTION = """Writes a page about a run, one HTML file that loads nothing: curves, and texts being decoded.

The newest checkpoint decodes some of the run's held-out prompts, or those of --prompt or --prompts, in every mode that
its stage trains. Needs plotly (the extra `report`).
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from nld_train.commands.arguments import add_prompts

    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="run.dir of the run")
    parser.add_argument("--output", metavar="FILE", help="the page (default: report.html in RUN_DIR)")
    add_prompts(parser, required=False)
    parser.add_argument("--chat", action="store_true", help="put --prompt into the tokenizer's chat template")
    parser.add_argument("--tokenizer", type=utf8, metavar="DIR", help="as of nld-decode (default: the checkpoint's)")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="most new tokens (default: the run's evaluation.max_new_tokens)"
    )
    parser.add_argument(
        "--threshold", type=float, metavar="P", help="of diffusion (default: the run's evaluation.threshold)"
    )
    parser.add_argument("--no-decoding", action="store_true", help="curves alone: no weights are read")


main = Command(
    "nld-report",
    _DESCRIPTION,
    _add_arguments,
    Imported("nld_train.report_page.command:run"),
    Imported("nld_train.report_page.command:check"),
)

if __name__ == "__main__":
    sys.exit(main())
