"""`nld-data`: prepares token sets, shows their content, takes prompts out of them, and writes questions to learn."""

from __future__ import annotations

import sys

from nld_train.commands.command import Command
from nld_train.commands.data_inspect import INSPECT
from nld_train.commands.data_prepare import PREPARE
from nld_train.commands.data_prompts import PROMPTS
from nld_train.commands.data_tasks import TASKS

main = Command(
    "nld-data",
    "Prepares token sets, and shows their content.",
    subcommands=(PREPARE, INSPECT, PROMPTS, TASKS),
)

if __name__ == "__main__":
    sys.exit(main())
