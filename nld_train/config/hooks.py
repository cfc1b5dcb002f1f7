"""The registry of hooks: the names that `run.hooks` accepts.

A hook (`training.hooks.base.Hook`) runs between two optimizer steps. Its module is imported when a
run lists it: reading settings then imports no torch, and training does not import evaluation. A new hook is a new file
and an entry here; a hook without an entry is given as `module:Class`.
"""

from __future__ import annotations

HOOKS: dict[str, str] = {
    "validation": "nld_train.training.hooks.validation:ValidationHook",
    "decoding": "nld_train.evaluation.decoding_hook:DecodingHook",
}
