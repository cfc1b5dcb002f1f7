"""One of four processes (started by `run_ranks`): loads sources under a layout, and saves them again.

    conversion_worker.py FOLDER NAME...

Each FOLDER/NAME has `source` and `imported`; `saved` is written. What was loaded straight from the source must equal
what was loaded from the import, or the process fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from converted_models import config_of, load_model, save_model

from nld_train.training.loop.parallel import parallel_groups

LAYOUT = ("parallel.tensor=2", "parallel.pipeline=2")


def main(folder: Path, names: list[str]) -> None:
    with parallel_groups(config_of(folder / names[0] / "imported", *LAYOUT)):
        for name in names:
            config = config_of(folder / name / "imported", *LAYOUT)
            loaded = load_model(config, folder / name / "imported")
            direct = load_model(config, folder / name / "source", direct=True)
            for (key, one), two in zip(loaded[0].named_parameters(), direct[0].parameters(), strict=True):
                # Rows that only pad the vocabulary are in no checkpoint: they stay what they were, 0.
                assert torch.equal(one, two), f"{name}: {key}"
            save_model(config, loaded, folder / name / "saved")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
