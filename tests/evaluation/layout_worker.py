"""One process of a group that trains several runs in order: `layout_worker.py RUNS.json`. Started by `run_ranks`.

The file contains a list of objects: `overrides`, a list of settings, and `hooked`, whether the run decodes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tiny_runs import undrawn

from nld_train.config.compose import compose_config
from nld_train.config.validate import validate
from nld_train.processes import world_size
from nld_train.training.loop.run import train


def main(path: str) -> None:
    for run in json.loads(Path(path).read_text()):
        config = compose_config([*run["overrides"], *(() if run["hooked"] else ("run.hooks=[validation]",))])
        validate(config, world_size())
        with undrawn():
            assert train(config) == 0


if __name__ == "__main__":
    main(sys.argv[1])
