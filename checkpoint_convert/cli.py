"""The command `nld-convert`, also `python -m checkpoint_convert.cli`. What is slow to import waits for its command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nld_train.errors import UserError, report_mistake

DISAGREEMENT_STATUS = 1
INTERRUPT_STATUS = 130


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line.

    Returns:
        0; 1 where `verify` finds a difference; 2 after one line about a mistake in what was asked for.
    """
    options = _parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except UserError as error:
        return report_mistake(str(error))
    except KeyboardInterrupt:
        print("error: interrupted; nothing was left behind", file=sys.stderr)
        return INTERRUPT_STATUS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nld-convert", description="Checkpoints: Ministral3 in, Hugging Face out.")
    commands = parser.add_subparsers(dest="command", required=True)

    importing = commands.add_parser("import", help="a Hugging Face directory into a checkpoint that any layout loads")
    importing.add_argument("source", type=Path, metavar="SRC", help="directory with config.json and safetensors files")
    importing.add_argument("destination", type=Path, metavar="DST", help="must not exist")
    importing.add_argument(
        "--mask-token-id", type=int, help="id that stands at masked positions, for a model that names none"
    )

    exporting = commands.add_parser("export", help="a checkpoint into a Hugging Face directory")
    exporting.add_argument("source", type=Path, metavar="SRC", help="a checkpoint, or a run directory for its latest")
    exporting.add_argument("destination", type=Path, metavar="DST", help="must not exist")
    exporting.add_argument(
        "--format",
        choices=("nld", "ministral3"),
        required=True,
        help="nld: with the code of all ways to decode; ministral3: plain autoregressive, for stock tools",
    )
    exporting.add_argument(
        "--dtype", choices=("bf16", "fp16", "fp32"), help="of the weights (default: the checkpoint's)"
    )
    exporting.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="take its tokenizer (default: the checkpoint's)"
    )
    exporting.add_argument(
        "--adapter", type=Path, metavar="DIR", help="take its drafter adapter (default: the checkpoint's, if any)"
    )

    verifying = commands.add_parser("verify", help="whether two checkpoints of either kind hold the same model")
    verifying.add_argument("first", type=Path, metavar="A")
    verifying.add_argument("second", type=Path, metavar="B")
    verifying.add_argument("--tokens", default="random", metavar="FILE", help="token ids to compute logits for")
    return parser


def _import(options: argparse.Namespace) -> int:
    from checkpoint_convert.importing import import_checkpoint

    import_checkpoint(options.source, options.destination, options.mask_token_id)
    return 0


def _export(options: argparse.Namespace) -> int:
    from checkpoint_convert.exporting import export_checkpoint

    export_checkpoint(
        options.source, options.destination, options.format, options.dtype, options.tokenizer, options.adapter
    )
    return 0


def _verify(options: argparse.Namespace) -> int:
    from checkpoint_convert.verify import print_verification, verify

    found = verify(options.first, options.second, options.tokens)
    print_verification(found)
    return 0 if found.agrees else DISAGREEMENT_STATUS


_COMMANDS = {"import": _import, "export": _export, "verify": _verify}


if __name__ == "__main__":
    sys.exit(main())
