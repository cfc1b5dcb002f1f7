"""Three ways to read the weights. Plain torch against `engine.Engine`; these files also travel inside an export."""

from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import DecodeOptions, Mode
from nld_train.decoding.algorithms.outputs import DecodeResult, Progress
from nld_train.decoding.engines.engine import Engine, Step
from nld_train.decoding.policies.commit import BlockView, CommitPolicy, Entropy, EvenSteps, FixedNumber, Threshold

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
