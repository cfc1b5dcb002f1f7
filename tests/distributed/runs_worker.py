"""One process of a group that trains several runs, one after another (started by `run_ranks`).

runs_worker.py CONFIG.yaml ...
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_runs import undrawn

from nld_train.config.load import config_from_yaml
from nld_train.training.loop.run import train

if __name__ == "__main__":
    with undrawn():
        sys.exit(max(train(config_from_yaml(Path(path).read_text())) for path in sys.argv[1:]))
