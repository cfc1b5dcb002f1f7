"""`nld-data inspect`: shows a token set, one of its samples, or one of its conversations."""

from __future__ import annotations

import argparse

from nld_train.commands.command import Command, utf8


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", metavar="PREFIX", help="path of the set without .bin and .idx")
    parser.add_argument("--sample", type=int, metavar="N", help="show sample N, in file order")
    parser.add_argument(
        "--sequence-length", type=int, default=512, metavar="L", help="tokens of a sample (default: 512)"
    )
    parser.add_argument("--conversation", type=int, metavar="N", help="show conversation N, in file order")
    parser.add_argument(
        "--block-size", type=int, metavar="B", help="tokens per block (default: 64, and 32 in conversations)"
    )
    parser.add_argument(
        "--blocks",
        choices=["answer", "document"],
        default="answer",
        help="where the blocks of conversations are counted from (default: answer)",
    )
    parser.add_argument("--level", type=float, metavar="T", help="noise level in [0, 1] (default: drawn)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the noise (default: 0)")
    parser.add_argument("--tokenizer", metavar="DIR", help="to show text (default: the one that the manifest names)")
    parser.add_argument(
        "--save-pictures", metavar="FOLDER", type=utf8, help="save the pictures of the conversation as they came"
    )


def _inspect(options: argparse.Namespace) -> None:
    from nld_train.data.inspect_set import InspectRequest, inspect_set

    inspect_set(
        InspectRequest(
            prefix=options.prefix,
            sample=options.sample,
            sequence_length=options.sequence_length,
            block_size=options.block_size,
            level=options.level,
            seed=options.seed,
            tokenizer=options.tokenizer,
            conversation=options.conversation,
            blocks=options.blocks,
            pictures_folder=options.save_pictures,
        )
    )


INSPECT = Command(
    "inspect",
    "Shows the content of a set; with --sample, one training sample with its document borders and masks; with "
    "--conversation, a conversation with its prompts and answers, blocks and masks.",
    _add_inspect,
    _inspect,
    summary="show a set, or one training sample of it",
)
