"""The hooks that there are: the names in `run.hooks`.

A hook (`training.hooks.base.Hook`) runs between two optimizer steps. It is imported when a run lists it, so that
reading settings imports no torch, and training no package that is built on it. A new hook is a new file and an entry
here; one without an entry is named as `module:Class`.
"""

from __future__ import annotations

HOOKS: dict[str, str] = {
    "validation": "nld_train.training.hooks.validation:ValidationHook",
    "decoding": "nld_train.evaluation.decoding_hook:DecodingHook",
}
