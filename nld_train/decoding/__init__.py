"""Four decode modes over one set of weights, in plain torch on `engine.Engine`; an export contains copies of the files.

Names are imported at their first use: the declarations of commit policies, from which command lines are built, must not
import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nld_train.decoding.algorithms.decode import decode
    from nld_train.decoding.algorithms.options import DecodeOptions, Mode
    from nld_train.decoding.algorithms.outputs import DecodeResult, Progress
    from nld_train.decoding.engines.engine import Engine, Step
    from nld_train.decoding.policies.commit import BlockView, CommitPolicy
    from nld_train.decoding.policies.entropy import Entropy
    from nld_train.decoding.policies.even_steps import EvenSteps
    from nld_train.decoding.policies.fixed_number import FixedNumber
    from nld_train.decoding.policies.threshold import Threshold

__all__ = [
    "BlockView",
    "CommitPolicy",
    "DecodeOptions",
    "DecodeResult",
    "Engine",
    "Entropy",
    "EvenSteps",
    "FixedNumber",
    "Mode",
    "Progress",
    "Step",
    "Threshold",
    "decode",
]

_MODULES = {
    "algorithms.decode": ("decode",),
    "algorithms.options": ("DecodeOptions", "Mode"),
    "algorithms.outputs": ("DecodeResult", "Progress"),
    "engines.engine": ("Engine", "Step"),
    "policies.commit": ("BlockView", "CommitPolicy"),
    "policies.entropy": ("Entropy",),
    "policies.even_steps": ("EvenSteps",),
    "policies.fixed_number": ("FixedNumber",),
    "policies.threshold": ("Threshold",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
