"""Three ways to read the weights. Plain torch against `engine.Engine`; these files also travel inside an export."""

from .decode import decode
from .engine import Engine, Step
from .options import DecodeOptions, Mode
from .outputs import DecodeResult, Progress
from .policies import BlockView, CommitPolicy, Entropy, EvenSteps, FixedNumber, Threshold

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
