"""Warnings of libraries that do not concern a user of this project, each with the reason."""

from __future__ import annotations

import warnings

_KNOWN: tuple[tuple[str, type[Warning]], ...] = (
    # Transformer Engine and Apex are optional; docs/model.md describes what runs instead.
    ("Transformer Engine and Apex are not installed", UserWarning),
    ("Apex is not installed. Falling back", UserWarning),
    # Megatron's own defaults and its own use of torch, nothing that a setting here could change.
    ("full scope is deprecated", UserWarning),
    ("The .grad attribute of a Tensor that is not a leaf", UserWarning),
    (r"`torch.distributed.\w+` is deprecated", FutureWarning),
    ("Please use DTensor instead", FutureWarning),
    ("`load_state_dict` is deprecated", FutureWarning),
    ("TypedStorage is deprecated", UserWarning),
)


def ignore_known_warnings() -> None:
    """Silences them in this process; every other warning is still shown. Call before Megatron is imported."""
    for message, category in _KNOWN:
        warnings.filterwarnings("ignore", message=message, category=category)


def quiet_transformers() -> None:
    """Shows only errors of `transformers`, which warns of the model type of an export, unknown to it."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
