"""The objective written out by hand: whole logits, one sample at a time, Python loops over rows.

Nothing here comes from `nld_train.losses` or from the selection of rows in `nld_train.training.loop.micro_batch`: the
formulas are those of `tests/naive.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from naive import clean_block_names, terms
from torch import Tensor

from nld_train.config.schema import Config
from nld_train.data.order import stage_orders
from nld_train.data.samples import Sample, training_samples
from nld_train.masking.layout import StreamLayout
from nld_train.model import streams
from nld_train.model.build import build_model, transformer_config
from nld_train.model.initialize import initialize
from nld_train.model.rotary import RotaryEmbedding


def naive_step(config: Config, device: torch.device) -> dict[str, Any]:
    """Losses and gradient norm of the first optimizer step of the run's only stage, on one process."""
    model = plain_model(config, device)
    losses = naive_losses(config, model)
    squares = [float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None]
    return {**losses, "grad_norm": math.sqrt(sum(squares))}


def naive_losses(config: Config, model: Any) -> dict[str, Any]:
    """Losses of that step; their gradients are added to what the model's weights were computed from."""
    (name,) = config.run.stages
    stage = config.stages[name]
    joint = stage.kind == "joint" or (stage.kind == "sft" and stage.alpha > 0)
    samples = training_samples(config, name, stage_orders(config, [_Plan(name)])[name])
    chosen = [samples[place] for place in range(config.batch.global_size)]
    scored = [ScoredSample(model, config, sample, joint) for sample in chosen]
    nothing = [[False] * len(sample.clean) for sample in scored]
    ar, diffusion = terms(
        stage.averaging,
        supervised=[sample.supervised for sample in scored],
        maskable=[sample["maskable"].tolist() for sample in chosen] if joint else nothing,
        masked=[sample.masked for sample in scored] if joint else nothing,
        probability=[sample["probability"].tolist() for sample in chosen] if joint else [],
        ar_nll=lambda n, i: scored[n].ar_nll(i),
        diffusion_nll=lambda n, i: scored[n].diffusion_nll(i),
    )
    loss = stage.ar_weight * ar + stage.alpha * diffusion
    loss.backward()
    return {"loss": float(loss), "ar_loss": float(ar), "diffusion_loss": float(diffusion) if joint else None}


class _Plan:
    def __init__(self, name: str) -> None:
        self.name, self.samples = name, 0


def plain_model(config: Config, device: torch.device) -> Any:
    """The whole model with its initial weights."""
    chunks = build_model(config, transformer_config(config, device), device)
    initialize(chunks, config.model, config.run.seed)
    return chunks[0]


class ScoredSample:
    """One sample with its whole logits `[S, vocab]`, the noisy half first."""

    def __init__(self, model: Any, config: Config, sample: Sample, joint: bool) -> None:
        self.tokens, documents = sample["tokens"].tolist(), sample["documents"].tolist()
        length = len(self.tokens) - 1
        self.clean = self.tokens[:length]
        answers = sample["answers"].tolist() if "answers" in sample else [True] * (length + 1)
        self.supervised = [documents[i] == documents[i + 1] and answers[i + 1] for i in range(length)]
        self.masked = sample["masked"].tolist() if joint else []
        mask = config.model.mask_token_id
        self.hidden = sample["noisy_tokens"].tolist() if joint else []
        noisy = [mask if masked else token for masked, token in zip(self.masked, self.hidden, strict=True)]
        self.first_clean = len(noisy)
        layout = StreamLayout.of_clean(torch.tensor([documents[:length]]))
        if joint:
            layout = layout.with_noisy(sample["blocks"][None], sample["begins"][None])
        if joint and config.diffusion.clean == "block":
            from_answers = answers[:length] if "answers" in sample and config.diffusion.blocks == "answer" else None
            names = clean_block_names(documents[:length], config.diffusion.block_size, from_answers)
            ends = [max(index for index, other in enumerate(names) if other == name) + 1 for name in names]
            layout = layout.with_clean_ends(torch.tensor([ends]))
        self.logits = _logits(model, config, noisy + self.clean, layout)

    def ar_nll(self, place: int) -> Tensor:
        return _nll(self.logits[self.first_clean + place], self.tokens[place + 1])

    def diffusion_nll(self, place: int) -> Tensor:
        return _nll(self.logits[place], self.hidden[place])


def _nll(logits: Tensor, target: int) -> Tensor:
    return torch.logsumexp(logits.double(), dim=0) - logits.double()[target]


def _logits(model: Any, config: Config, tokens: list[int], layout: StreamLayout) -> Tensor:
    rotary = RotaryEmbedding(config.model, torch.device("cpu"))
    handle = streams.register(streams.StreamContext.of(layout, rotary, torch.float32))
    logits: Tensor = model(torch.tensor([tokens]), handle)
    return logits
