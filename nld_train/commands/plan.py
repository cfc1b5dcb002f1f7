"""The command `nld-plan`: memory, step time and days of every legal layout of a run, and the best of them."""

from __future__ import annotations

import argparse
import sys

from nld_train.commands.command import Command
from nld_train.results import add_result_options, check_result_files, give_result

_DESCRIPTION = """Memory, step time and days of every legal layout of a run, counted without a GPU.

  nld-plan model=8b gpus=256
  nld-plan model=14b gpus=64 memory=80 sequence_length=8192 parallel.tensor=8
  nld-plan experiment=ablation_8b gpus=32 hardware.network=25

gpus, memory (GiB per device, 80), node_size (8), rows (8) and hardware.* (nld_train/planner/hardware.yaml) are keys
of the planner. Every other key is one of the run, as for nld-train; layout keys that are given are not changed.
model=3b, 8b and 14b mean the paper's experiments.
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="see above")
    add_result_options(parser, "every layout")


def _plan(arguments: argparse.Namespace) -> None:
    from nld_train.planner import show
    from nld_train.planner.choose import all_plans
    from nld_train.planner.hardware import assumptions
    from nld_train.planner.request import read_request

    request = read_request(arguments.settings)
    assumed = assumptions(request.hardware)
    plans = all_plans(request, assumed.hardware)
    result = show.as_json(request, plans, assumed)
    give_result(arguments, result, lambda: show.show(request, plans, assumed))


main = Command("nld-plan", _DESCRIPTION, _add_arguments, _plan, check_result_files)

if __name__ == "__main__":
    sys.exit(main())
