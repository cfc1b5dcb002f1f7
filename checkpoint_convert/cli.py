"""The command `nld-convert`, also `python -m checkpoint_convert.cli`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nld_train.commands.command import Command, Imported

DISAGREEMENT_STATUS = 1


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="directory with config.json and safetensors files")
    parser.add_argument("destination", type=Path, metavar="DST", help="must not exist")
    parser.add_argument("--mask-token-id", type=int, help="id of the mask token, for a model whose config has none")
    parser.add_argument(
        "--vision",
        action="store_true",
        default=None,
        help="keep the vision tower and projector of a multimodal model (default: only of a vision-language export)",
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="a checkpoint, or a run directory for its latest")
    parser.add_argument("destination", type=Path, metavar="DST", help="must not exist")
    parser.add_argument(
        "--format",
        choices=("nld", "ministral3"),
        required=True,
        help="nld: with code for all decode modes; ministral3: autoregressive only, for stock tools",
    )
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="of the weights (default: the checkpoint's)")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="directory of the tokenizer (default: the checkpoint's)"
    )
    parser.add_argument(
        "--adapter", type=Path, metavar="DIR", help="directory of the drafter adapter (default: the checkpoint's)"
    )
    parser.add_argument(
        "--keep-lora",
        action="store_true",
        help="export the LoRA of the last stage beside the weights, in PEFT's files, and do not add it to them",
    )
    parser.add_argument(
        "--license", metavar="ID", help="license in the model card, e.g. apache-2.0 (default: the original model's)"
    )
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        metavar="CODE",
        help="language in the model card, e.g. en; may be repeated (default: the original model's)",
    )


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, metavar="A")
    parser.add_argument("second", type=Path, metavar="B")
    logits = parser.add_mutually_exclusive_group()
    logits.add_argument(
        "--tokens", default="random", metavar="FILE", help="token ids to compute logits for (default: random ones)"
    )
    logits.add_argument(
        "--tensors-only",
        action="store_true",
        help="compare settings and tensors, and compute no logits, which take longer",
    )


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="DIR", help="an export")
    parser.add_argument("repository", metavar="REPO", help="ORG/NAME; made where it does not exist")
    parser.add_argument("--private", action="store_true", help="only you and ORG can see a new repository")
    parser.add_argument("--revision", metavar="BRANCH", help="commit to this branch (default: main)")
    parser.add_argument("--message", default="Upload an export of nld-train", metavar="TEXT", help="of the commit")


def _import(options: argparse.Namespace) -> None:
    from checkpoint_convert.importing import import_checkpoint

    import_checkpoint(options.source, options.destination, options.mask_token_id, vision=options.vision)


def _export(options: argparse.Namespace) -> None:
    from checkpoint_convert.exporting import export_checkpoint

    export_checkpoint(
        options.source,
        options.destination,
        options.format,
        options.dtype,
        options.tokenizer,
        options.adapter,
        options.keep_lora,
        options.license,
        tuple(options.language),
    )


def _verify(options: argparse.Namespace) -> int:
    from checkpoint_convert.verify import print_result, print_tensors, verify

    tokens = None if options.tensors_only else options.tokens
    found = verify(options.first, options.second, tokens, print_tensors)
    print_result(found)
    return 0 if found.agrees else DISAGREEMENT_STATUS


def _push(options: argparse.Namespace) -> None:
    from checkpoint_convert.push import push

    push(options.source, options.repository, options.private, options.revision, options.message)


# What an interrupted command has left behind: a push may have made its repository.
_LEFT = {"push": "interrupted; the same command goes on"}

main = Command(
    "nld-convert",
    "Convert between Hugging Face directories and Megatron checkpoints, and publish them.",
    subcommands=tuple(
        Command(
            name,
            description,
            add_arguments,
            run,
            Imported(f"checkpoint_convert.command_line_checks:check_{name}"),
            interrupted=_LEFT.get(name, "interrupted; nothing was left behind"),
        )
        for name, description, add_arguments, run in (
            ("import", "a Hugging Face directory into a checkpoint that any layout loads", _add_import, _import),
            ("export", "a checkpoint into a Hugging Face directory", _add_export, _export),
            ("verify", "whether two checkpoints of either kind are the same model", _add_verify, _verify),
            ("push", "an export to the Hugging Face Hub", _add_push, _push),
        )
    ),
)

if __name__ == "__main__":
    sys.exit(main())
