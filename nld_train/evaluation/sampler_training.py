"""Training of the trained sampler, and its quality: how well it predicts which tokens are finally committed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nld_train.decoding.policies.sampler_network import SamplerShape, TrainedSampler
from nld_train.errors import UserError
from nld_train.evaluation.sampler_data import Examples
from nld_train.model.finite import first_non_finite

_WARMUP = 0.05


@dataclass(frozen=True)
class SamplerTraining:
    """Settings of the training.

    Attributes:
        steps: of the optimizer.
        batch_size: states per step.
        learning_rate: at its peak; a cosine brings it to zero.
        seed: of the initial weights and the order of the states.

    Raises:
        ValueError: a number that is not positive, or a learning rate above 1.
    """

    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not 1 or more")
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate: {self.learning_rate} is not above 0 and at most 1")


def principal_components(embedding: Tensor, number: int) -> Tensor:
    """Each token's embedding in the directions of the largest variance over the vocabulary.

    Args:
        embedding: `[V, h]`.
        number: components; those beyond h are zero.

    Returns:
        float32 `[V, number]` on the CPU, of mean 0, scaled so that the first component has variance 1.
    """
    centred = embedding.detach().float().cpu()
    centred = centred - centred.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    kept = centred @ directions.flip(1)[:, :number]
    scaled = kept / variances[-1].clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    return F.pad(scaled, (0, number - scaled.shape[1]))


def train_sampler(
    shape: SamplerShape,
    table: Tensor,
    examples: Examples,
    settings: SamplerTraining,
    report: Callable[[int, float], None] | None = None,
) -> TrainedSampler:
    """Trains a sampler with binary cross-entropy on masked positions (docs/method.md, "Trained sampler").

    Args:
        shape: sizes.
        table: `[V, components]`, what `principal_components` returns.
        examples: of one-token-per-pass decoding.
        settings: of the optimizer.
        report: called after each step with its number and its loss in nats.

    Raises:
        UserError: the training diverged.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        sampler = TrainedSampler(shape, len(table)).train()
    sampler.table.copy_(table)
    optimizer = torch.optim.AdamW(sampler.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps + 1, pct_start=_WARMUP
    )
    with torch.enable_grad():
        for step in range(settings.steps):
            batch = examples.pick(torch.randint(len(examples), (settings.batch_size,), generator=generator))
            loss = F.binary_cross_entropy_with_logits(
                sampler(batch.seen)[batch.supervised], batch.labels[batch.supervised].float()
            )
            if not loss.isfinite():
                raise _diverged(settings)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(sampler.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if report is not None:
                report(step + 1, loss.item())
    if first_non_finite(sampler.named_parameters()) is not None:
        raise _diverged(settings)
    return sampler.eval()


def _diverged(settings: SamplerTraining) -> UserError:
    return UserError(
        f"--learning-rate {settings.learning_rate:g}: the loss or the weights of the sampler are no longer finite, and "
        "it was not saved; give a lower one"
    )


@torch.no_grad()
def sampler_scores(sampler: TrainedSampler, examples: Examples, batch_size: int = 512) -> Tensor:
    """The sampler's probability at every supervised position, in their order: float32 `[m]`."""
    parts = torch.arange(len(examples)).split(batch_size)
    return torch.cat([sampler(batch.seen)[batch.supervised].sigmoid() for batch in map(examples.pick, parts)])


def confidence(examples: Examples) -> Tensor:
    """The model's own probability at every supervised position: float32 `[m]`."""
    return examples.seen.statistics[..., 0][examples.supervised]


def quality(sampler: TrainedSampler, unseen: Examples) -> dict[str, Any]:
    """Figures of a sampler on blocks that it was not trained on.

    Returns:
        `auc` of the sampler and `auc_of_confidence` of the model (see `area_under_curve`); the number of `positions`,
        and the fraction of them whose prediction is finally committed, `share_right`; `parameters` of the sampler.
    """
    labels = unseen.labels[unseen.supervised]
    return {
        "auc": area_under_curve(sampler_scores(sampler, unseen), labels),
        "auc_of_confidence": area_under_curve(confidence(unseen), labels),
        "positions": len(labels),
        "share_right": float(labels.float().mean()),
        "parameters": sum(parameter.numel() for parameter in sampler.parameters()),
    }


def area_under_curve(scores: Tensor, labels: Tensor) -> float | None:
    """AUC: how often a right prediction has a higher score than a wrong one, ties counted half (Mann-Whitney).

    Args:
        scores: float `[m]`.
        labels: bool `[m]`.

    Returns:
        None where all labels are alike.
    """
    _, group, sizes = scores.unique(return_inverse=True, return_counts=True)
    ranks = (sizes.cumsum(0) - (sizes - 1) / 2).double()[group]
    right, wrong = int(labels.sum()), int((~labels).sum())
    if not right or not wrong:
        return None
    return float((ranks[labels].sum() - right * (right + 1) / 2) / (right * wrong))
