"""Operations of a step, counted from its samples."""

from __future__ import annotations

from torch import Tensor

from nld_train.config.counts import training_flops
from nld_train.config.schema import Config
from nld_train.masking.layout import StreamLayout
from nld_train.masking.visibility import visible_pairs


def arithmetic(config: Config, micro_batches: list[dict[str, Tensor]], two_streams: bool) -> float:
    """Operations of a step, counted from the rows and the visible pairs of its samples.

    Padding and inert tokens do not count: the time that they take is a loss.

    Args:
        config: the run.
        micro_batches: samples, as of `data.samples`.
        two_streams: whether their noisy streams pass through the model.
    """
    total = 0.0
    for batch in micro_batches:
        for row in range(len(batch["tokens"])):
            sample = {name: tensor[row : row + 1] for name, tensor in batch.items()}
            layout = used_layout(sample, two_streams)
            rows = int(sample["supervised"].sum()) + (int(sample["masked"].sum()) if two_streams else 0)
            total += training_flops(config.model, layout.total_length, int(visible_pairs(layout)), rows)
    return total


def used_layout(sample: dict[str, Tensor], two_streams: bool) -> StreamLayout:
    """The streams of one sample `[1, ...]` without what they end with: padding, and inert tokens."""
    documents = sample["documents"][:, :-1]
    if "answers" in sample:
        padding = documents == documents[:, -1:]
        if not bool((sample["answers"][:, :-1] & padding).any()):
            documents = documents[:, : int((~padding).sum())]
    layout = StreamLayout.of_clean(documents)
    if not two_streams:
        return layout
    used = int(sample["maskable"][0].nonzero().max()) + 1 if sample["maskable"].any() else 0
    return layout.with_noisy(sample["blocks"][:, :used], sample["begins"][:, :used])
