"""What tests of training know about the runs of the fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

AR_STEPS, JOINT_STEPS = 4, 4
# The fixture `train`: trains into a directory, with more overrides, and returns the directory.
Train = Callable[..., Path]
