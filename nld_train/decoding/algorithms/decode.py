"""`decode`: the entry point to all four decode modes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nld_train.decoding.algorithms.autoregressive import decode_autoregressive
from nld_train.decoding.algorithms.batch import Batch
from nld_train.decoding.algorithms.diffusion import decode_diffusion
from nld_train.decoding.algorithms.kept_text import KeptText
from nld_train.decoding.algorithms.linear import decode_linear
from nld_train.decoding.algorithms.options import DecodeOptions, Mode, check_request
from nld_train.decoding.algorithms.outputs import DecodeResult, Observer
from nld_train.decoding.algorithms.quadratic import decode_quadratic
from nld_train.decoding.engines.engine import Engine
from nld_train.decoding.policies.commit import CommitPolicy


@torch.no_grad()
def decode(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    mode: Mode,
    options: DecodeOptions,
    policy: CommitPolicy | None = None,
    observer: Observer | None = None,
    batch_size: int | None = None,
    kept: KeptText | None = None,
) -> DecodeResult:
    """Continues prompts of unequal length together, with continuous batching (`docs/method.md`, "Decoding").

    A waiting prompt is admitted as soon as a slot is free. The text of a sequence does not depend on its batch.

    Args:
        engine: the model.
        prompts: ids of each sequence, without padding; with pictures, `model.vision.picture_prompt.PicturePrompt`.
        mode: `ar`, `diffusion`, `linear` or `quadratic`.
        options: settings of the call.
        policy: commit policy; required for diffusion, refused in other modes.
        observer: notified of every sequence after each forward that changed it.
        batch_size: maximum number of active sequences; None for all.
        kept: what the engine's cache holds of earlier calls, each with one prompt; None to begin anew.

    Raises:
        ValueError: what `check_request` refuses; diffusion without a policy or another mode with one; a batch size
            below 1; CUDA graphs required where there can be none.
    """
    check_request(engine, prompts, mode, options)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is not 1 or more")
    if (policy is not None) != (mode == "diffusion"):
        raise ValueError(f"policy: mode {mode!r} {'needs one' if mode == 'diffusion' else 'takes none'}")
    assert kept is None or len(prompts) == 1, "a text is kept in the cache of one sequence"
    length = options.block_length
    # Quadratic needs cache entries for k drafts and k * k masks beyond the text, the others for at most a block.
    slack = length * (length + 1) if mode == "quadratic" else 0 if mode == "ar" else length
    batch = Batch(engine, prompts, options, slack, batch_size, observer, kept)
    if mode == "ar":
        decode_autoregressive(batch)
    elif mode == "linear":
        decode_linear(batch)
    elif mode == "quadratic":
        decode_quadratic(batch)
    elif policy is not None:
        decode_diffusion(batch, policy)
    return batch.result()
