"""The variance of the diffusion loss's gradient under each averaging.

    python -m benchmarks.averaging

One batch of real text, fixed weights, many noise draws. For every averaging the gradient of the diffusion term over all
parameters is computed at each draw. Its total variance over the draws, divided by the squared norm of its mean, is
printed and written as JSON. A constant factor on the loss does not change that ratio, so averagings of different scales
can be compared.

The text is the source of the running interpreter's standard library, as bytes. See docs/averaging.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.record import RESULTS, write_result
from nld_train.config.compose import compose_config
from nld_train.config.schema import Averaging, Config, DiffusionConfig
from nld_train.data.collate import Samples, StreamCollator
from nld_train.data.packed import PackedTokens
from nld_train.data.samples import SampleSettings, noisy_part
from nld_train.losses.objective import GlobalCounts, TermWeights, denominators, diffusion_row_weights, objective_terms
from nld_train.masking.schedule import noise_schedule
from nld_train.model import streams
from nld_train.model.build import build_model, transformer_config
from nld_train.model.initialize import initialize
from nld_train.model.ministral3 import Ministral3Model
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.loop.micro_batch import MicroBatch, Placement, prepare
from nld_train.training.loop.parallel import parallel_groups

AVERAGINGS: tuple[Averaging, ...] = ("global", "contributing", "masked", "sequence")
LEVELS = ("independent", "stratified", "shared")
CPU = torch.device("cpu")
# Ids of the byte tokenizer: four special ones, then the bytes.
_END, _MASK, _FIRST_BYTE, _VOCABULARY = 2, 3, 4, 260


def text_batches(sequences: int, length: int, seed: int) -> Iterator[Samples]:
    """Batches `tokens`, `documents` `[b, L+1]`, `supervised` `[b, L]` of source files packed in random order."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    order = np.random.default_rng(seed).permutation(len(files))
    pieces = [
        np.frombuffer(files[index].read_bytes(), dtype=np.uint8).astype(np.int64) + _FIRST_BYTE for index in order
    ]
    tokens = np.concatenate([np.append(piece, _END) for piece in pieces])
    documents = np.repeat(np.arange(len(pieces)), [len(piece) + 1 for piece in pieces])
    size = sequences * (length + 1)
    for start in range(0, len(tokens) - size, size):
        cut = {"tokens": tokens[start : start + size], "documents": documents[start : start + size]}
        batch = {name: torch.from_numpy(values).view(sequences, -1) for name, values in cut.items()}
        yield batch | {"supervised": batch["documents"][:, 1:] == batch["documents"][:, :-1]}


def with_noise(batch: Samples, diffusion: DiffusionConfig, seed: int, draw: int) -> Samples:
    """The batch with a noisy stream under the noise of its `draw`-th epoch, as `data.samples` makes it."""
    settings = SampleSettings(
        stage="averaging",
        seed=seed,
        noisy_length=batch["tokens"].shape[1] - 1,
        documents="isolate",
        diffusion=diffusion,
        global_size=len(batch["tokens"]),
        vocab_size=_VOCABULARY,
        mask_token_id=_MASK,
        eos_token_id=_END,
    )
    rows = [
        noisy_part(settings, draw * len(batch["tokens"]) + row, PackedTokens(tokens, documents))
        for row, (tokens, documents) in enumerate(zip(batch["tokens"].numpy(), batch["documents"].numpy(), strict=True))
    ]
    return batch | {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


@dataclass
class Experiment:
    """A model, and where its passes run."""

    config: Config
    model: Ministral3Model
    placement: Placement

    @classmethod
    def of(cls, config: Config) -> Experiment:
        """With the initial weights of the run's seed; Megatron's groups must exist."""
        (model,) = build_model(config, transformer_config(config, CPU), CPU)
        initialize([model], config.model, config.run.seed)
        return cls(config, model, Placement(RotaryEmbedding(config.model, CPU), torch.float32, CPU))

    def train(self, batches: Iterator[Samples], steps: int, alpha: float) -> list[float]:
        """Runs joint steps under `global`, so that gradients are not those of random weights; returns AR losses."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
        losses = []
        for step, samples in enumerate(islice(batches, steps)):
            batch, _ = self._prepare(with_noise(samples, self.config.diffusion, self.config.run.seed + 1, step))
            nll = self.model(batch.tokens, batch.handle, batch.rows.index, batch.rows.targets)
            split = batch.rows.ar_count
            terms = objective_terms(nll[:split], batch.ar_weights, nll[split:], batch.diffusion_weights)
            optimizer.zero_grad()
            terms.loss(TermWeights(1.0, alpha)).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            losses.append(float(terms.ar.detach()))
        return losses

    def _prepare(self, samples: Samples) -> tuple[MicroBatch, GlobalCounts]:
        streams.clear()
        mask, schedule = self.config.model.mask_token_id, noise_schedule(self.config.diffusion)
        batch = StreamCollator(True, mask, "global", schedule, sequences=len(samples["tokens"])).of(samples)
        counts = GlobalCounts(*batch.counts)
        return prepare(batch, denominators("global", counts), self.placement), counts

    def diffusion_gradients(self, samples: Samples) -> dict[Averaging, tuple[float, Tensor]]:
        """Value and gradient `[parameters]` of the diffusion term under every averaging.

        All but `sequence` divide the same sum by different counts, so one backward pass is enough for them.
        """
        batch, counts = self._prepare(samples)
        masked = slice(batch.rows.ar_count, None)
        # All logits and torch's cross-entropy, because Megatron's kernel supports only one backward pass.
        logits = self.model(batch.tokens, batch.handle, batch.rows.index[masked])
        nll = F.cross_entropy(logits, batch.rows.targets[masked], reduction="none")
        value, gradient = self._gradient("global", samples, nll, counts)
        found = {"sequence": self._gradient("sequence", samples, nll, counts)}
        for name in AVERAGINGS[:3]:
            factor = denominators("global", counts).diffusion / max(1.0, denominators(name, counts).diffusion)
            found[name] = (factor * value, factor * gradient)
        return {name: found[name] for name in AVERAGINGS}

    def _gradient(
        self, averaging: Averaging, samples: Samples, nll: Tensor, counts: GlobalCounts
    ) -> tuple[float, Tensor]:
        masked, schedule = samples["masked"], noise_schedule(self.config.diffusion)
        weights = diffusion_row_weights(averaging, counts, masked, samples["probability"], schedule)
        term = (weights[masked] * nll).sum()
        gradients = torch.autograd.grad(term, list(self.model.parameters()), retain_graph=True)
        return float(term.detach()), torch.cat([gradient.flatten() for gradient in gradients])


@dataclass
class Spread:
    """Running sums over draws of a value and of a gradient."""

    values: list[float] = field(default_factory=list)
    total: Tensor | float = 0.0
    squares: float = 0.0

    def add(self, value: float, gradient: Tensor) -> None:
        """Adds one draw."""
        self.values.append(value)
        self.total = self.total + gradient.double()
        self.squares += float(gradient.double().square().sum())

    def summary(self) -> dict[str, float]:
        """Variance of the gradient over the squared norm of its mean, estimated from the draws.

        The mean of n draws contains 1/n of the variance, so a large ratio is underestimated, and never above n.
        """
        count = len(self.values)
        mean_square = float(torch.as_tensor(self.total).square().sum()) / count**2
        variance = (self.squares - count * mean_square) / (count - 1)
        return {
            "gradient_variance_over_squared_mean": variance / mean_square,
            "gradient_variance": variance,
            "squared_norm_of_mean_gradient": mean_square,
            "mean_value": float(np.mean(self.values)),
            "standard_deviation_of_value": float(np.std(self.values, ddof=1)),
        }


def measure(
    experiment: Experiment, batch: Samples, diffusion: DiffusionConfig, draws: int
) -> dict[str, dict[str, float]]:
    """The spread of the diffusion gradient over noise draws on one batch, for every averaging."""
    spreads = {name: Spread() for name in AVERAGINGS}
    for draw in range(draws):
        gradients = experiment.diffusion_gradients(with_noise(batch, diffusion, experiment.config.run.seed, draw))
        for name, (value, gradient) in gradients.items():
            spreads[name].add(value, gradient)
    return {name: spread.summary() for name, spread in spreads.items()}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole experiment: with initial and trained weights, for every choice of `diffusion.levels`."""
    config = compose_config(
        [
            "model=tiny",
            f"model.num_hidden_layers={options.layers}",
            f"diffusion.block_size={options.block_size}",
            "execution.device=cpu",
        ]
    )
    batches = text_batches(options.sequences, options.length, config.run.seed)
    batch = next(batches)  # not used for training
    rows: list[dict[str, Any]] = []
    losses: list[float] = []
    with parallel_groups(config):
        experiment = Experiment.of(config)
        for weights, steps in (("random", 0), ("trained", options.train_steps)):
            losses = experiment.train(batches, steps, alpha=0.3)
            for levels in options.levels if steps or not options.train_steps else options.levels[:1]:
                diffusion = dataclasses.replace(config.diffusion, levels=levels)
                found = measure(experiment, batch, diffusion, options.draws)
                rows += [
                    {"weights": weights, "levels": levels, "averaging": name, **found[name]} for name in AVERAGINGS
                ]
    settings = {name: value for name, value in vars(options).items() if name != "results"}
    parameters = sum(weight.numel() for weight in experiment.model.parameters())
    return {"settings": settings, "parameters": parameters, "ar_loss_after_training": losses[-1], "rows": rows}


def show(figures: dict[str, Any]) -> None:
    """Prints the results as a table."""
    table = Table("weights", "levels", "averaging", "variance / |mean|^2", "term: mean", "term: std")
    for row in figures["rows"]:
        names = ("gradient_variance_over_squared_mean", "mean_value", "standard_deviation_of_value")
        table.add_row(row["weights"], row["levels"], row["averaging"], *(f"{row[name]:.4g}" for name in names))
    Console(width=110).print(table)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=128, help="noise draws per measurement (default: 128)")
    parser.add_argument("--sequences", type=int, default=8, help="sequences of the batch (default: 8)")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence (default: 128)")
    parser.add_argument("--block-size", type=int, default=32, help="tokens of a block (default: 32)")
    parser.add_argument("--layers", type=int, default=2, help="layers of the tiny model (default: 2)")
    parser.add_argument("--train-steps", type=int, default=300, help="joint steps of the trained model (default: 300)")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS), help="how levels are drawn")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints and writes the result."""
    options = parse(arguments)
    figures = run(options)
    show(figures)
    print(write_result("averaging", figures, options.results))


if __name__ == "__main__":
    main()
