"""One process of a group that trains several runs, one after another (started by `run_ranks`).

runs_worker.py CONFIG.yaml ...

Gradients are in several buckets: a tiny model would fill none of the real ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_runs import undrawn

from nld_train.config import counts
from nld_train.config.load import config_from_yaml
from nld_train.training.loop.run import train

if __name__ == "__main__":
    counts.BUCKET, counts.BUCKET_PER_RANK = 5000, 0
    with undrawn():
        sys.exit(max(train(config_from_yaml(Path(path).read_text())) for path in sys.argv[1:]))
