"""What a step and a decode forward may cost the host: the most that the tests allow. Lower a figure with the cost.

- `syncs`: times that the host waits for the device, other than to copy something to it.
- `copies`: copies from the host to the device.
- `slow_copies`: those of them for which the host waits, or that do not come from pinned memory.
"""

from __future__ import annotations

# Optimizer steps with what the loop does after each: per step, and for each micro-batch of it. The host reads the loss
# terms with the gradient norm. A micro-batch is one copy.
_OBJECTIVE = {"syncs": (1, 0), "copies": (0, 1), "slow_copies": (0, 0)}
STEPS: dict[str, dict[str, tuple[int, int]]] = {
    "ar": _OBJECTIVE,
    "joint": _OBJECTIVE,
}

# A decode cycle: what is computed between two readings of the host. Its inputs come in one pinned copy.
CYCLE: dict[str, float] = {"syncs": 1.0, "copies": 1.0, "slow_copies": 0.0}

# Mean over the forwards of one sequence, its prefill included; a cycle of linear self-speculation has two.
FORWARDS: dict[str, dict[str, float]] = {
    "ar": {"syncs": 1.0, "copies": 3.1, "slow_copies": 3.1},
    "diffusion": {"syncs": 1.8, "copies": 4.8, "slow_copies": 4.8},
    "linear": {"syncs": 1.5, "copies": 4.5, "slow_copies": 4.5},
    "quadratic": {"syncs": 2.9, "copies": 7.9, "slow_copies": 7.9},
}
