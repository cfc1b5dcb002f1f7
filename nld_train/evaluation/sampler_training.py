"""Training of the trained sampler, and its quality: how well it predicts which tokens are finally committed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nld_train.decoding.policies.sampler_network import PREDICTIONS, SamplerShape, TrainedSampler
from nld_train.errors import UserError
from nld_train.evaluation.sampler_data import Examples
from nld_train.model.finite import first_non_finite

_WARMUP = 0.05
# Triples of embeddings from which components are computed, and how many of them at once.
_TRIPLES, _ROWS = 2**16, 2**10


@dataclass(frozen=True)
class SamplerTraining:
    """Settings of the training.

    Attributes:
        steps: most steps of the optimizer.
        batch_size: states per step.
        learning_rate: at its peak; a cosine brings it to zero.
        seed: of the initial weights, the order of the states, and those from which components are computed.
        evaluate_every: steps between two evaluations of the AUC on held-out states.
        patience: evaluations without a higher AUC after which the training stops.

    Raises:
        ValueError: a number that is not positive, or a learning rate above 1.
    """

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3
    seed: int = 0
    evaluate_every: int = 100
    patience: int = 3

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not 1 or more")
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate: {self.learning_rate} is not above 0 and at most 1")


class BestOnHeldOut:
    """Stops a training when the AUC on held-out states has stopped rising, and keeps the best weights.

    Args:
        examples: of prompts that are neither trained on nor used for the report.
        settings: when to evaluate, and when to stop.

    Attributes:
        auc: the highest one; None where it is not defined, because all labels are alike: nothing is then stopped.
        step: after which it was reached.
    """

    def __init__(self, examples: Examples, settings: SamplerTraining) -> None:
        self._examples, self._settings = examples, settings
        self._labels = examples.labels[examples.supervised]
        self._weights: dict[str, Tensor] = {}
        self.auc: float | None = None
        self.step = 0

    def stops(self, sampler: TrainedSampler, step: int) -> bool:
        """Evaluates after a step, if it is time to; whether the training stops."""
        if step % self._settings.evaluate_every and step != self._settings.steps:
            return False
        auc = area_under_curve(sampler_scores(sampler.eval(), self._examples), self._labels)
        sampler.train()
        if auc is not None and (self.auc is None or auc > self.auc):
            self.auc, self.step = auc, step
            self._weights = {name: value.clone() for name, value in sampler.state_dict().items() if name != "table"}
        return self.auc is not None and step - self.step >= self._settings.patience * self._settings.evaluate_every

    def restore(self, sampler: TrainedSampler) -> None:
        """Sets the best weights."""
        if self._weights:
            sampler.load_state_dict({"table": sampler.table, **self._weights})


def component_table(embedding: Tensor, examples: Examples, number: int, seed: int = 0) -> Tensor:
    """The principal components of the embeddings of the three likeliest tokens together, as shares of each token.

    The components of a triple are `table[0, first] + table[1, second] + table[2, third]`.

    Args:
        embedding: `[V, h]`.
        examples: whose triples at supervised positions have these components.
        number: components; those beyond 3h are zero.
        seed: of the draw of triples, where there are more than `_TRIPLES`.

    Returns:
        float32 `[3, V, number]` on the CPU: over the triples of mean 0, the first component with variance 1.
    """
    weight = embedding.detach().float().cpu()
    triples = examples.seen.top[examples.supervised]
    order = torch.randperm(len(triples), generator=torch.Generator().manual_seed(seed))
    triples = triples[order[:_TRIPLES]]
    mean = torch.cat([weight[tokens].mean(0) for tokens in triples.T])
    covariance = torch.zeros(len(mean), len(mean))
    for part in triples.split(_ROWS):
        rows = weight[part].flatten(1) - mean
        covariance.addmm_(rows.T, rows, alpha=1 / len(triples))
    variances, directions = torch.linalg.eigh(covariance)
    scale = variances[-1].clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    kept = directions.flip(1)[:, :number] / scale
    shares = torch.stack([weight @ part for part in kept.chunk(PREDICTIONS)]) - mean @ kept / PREDICTIONS
    return F.pad(shares, (0, number - shares.shape[-1]))


def train_sampler(
    shape: SamplerShape,
    table: Tensor,
    examples: Examples,
    settings: SamplerTraining,
    report: Callable[[int, float], None] | None = None,
    best: BestOnHeldOut | None = None,
) -> TrainedSampler:
    """Trains a sampler with binary cross-entropy on masked positions (docs/method.md, "Trained sampler").

    Args:
        shape: sizes.
        table: what `component_table` returns.
        examples: of trajectories.
        settings: of the optimizer.
        report: called after each step with its number and its loss in nats.
        best: stops the training, whose best weights are then returned; None for all steps.

    Raises:
        UserError: the training diverged.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        sampler = TrainedSampler(shape, table.shape[-2]).train()
    sampler.table.copy_(table)
    optimizer = torch.optim.AdamW(sampler.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps + 1, pct_start=_WARMUP
    )
    for step in range(1, settings.steps + 1):
        batch = examples.pick(torch.randint(len(examples), (settings.batch_size,), generator=generator))
        with torch.enable_grad():
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
            report(step, loss.item())
        if best is not None and best.stops(sampler, step):
            break
    if best is not None:
        best.restore(sampler)
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
