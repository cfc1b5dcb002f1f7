"""Models small enough to decode with in milliseconds, and an engine that counts its forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_shape import MASK, SHAPE
from torch import Tensor
from transformers import Ministral3Config, Ministral3ForCausalLM

from checkpoint_convert.hf_package.cached_engine import CachedEngine
from checkpoint_convert.hf_package.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig
from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.decoding import Step

__all__ = ["LENGTHS", "MASK", "CountingEngine", "as_ministral3", "counting_texts", "random_model", "trained_model"]

# Of blocks: no draft, some, and more than most texts here. A quadratic cycle of 32 drafts runs 1056 tokens.
LENGTHS = [1, pytest.param(2, marks=pytest.mark.long), 7, pytest.param(32, marks=pytest.mark.long)]


def random_model(seed: int = 0, **changes: Any) -> NemotronLabsDiffusionModel:
    """Weights large enough that predictions differ from position to position."""
    torch.manual_seed(seed)
    settings = {**SHAPE, "attn_implementation": "sdpa", "mask_token_id": MASK, "initializer_range": 0.35, **changes}
    return NemotronLabsDiffusionModel(NemotronLabsDiffusionConfig(**settings)).eval()


def trained_model(steps: int = 150) -> NemotronLabsDiffusionModel:
    """Trained for seconds on counting texts with jumps: drafts are accepted often, not always."""
    model = random_model(seed=1, initializer_range=0.05).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        texts = counting_texts(16, 32, generator)
        optimizer.zero_grad()
        model(texts, labels=texts, block_length=8, generator=generator).loss.backward()
        optimizer.step()
    return model.eval()


def counting_texts(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Texts that count up through the ids 10..49 by one, and now and then jump: int64 `[rows, length]`."""
    jumps = torch.rand(rows, length, generator=generator) < 0.1
    steps = torch.where(jumps, torch.randint(2, 20, (rows, length), generator=generator), 1)
    return 10 + steps.cumsum(1) % 40


def as_ministral3(model: NemotronLabsDiffusionModel) -> Ministral3ForCausalLM:
    """The same weights in the stock model of `transformers`."""
    stock = Ministral3ForCausalLM(Ministral3Config(**{**SHAPE, "attn_implementation": "eager"}))
    names = {
        name.replace("encoder.", "model.").replace("diffusion_head", "lm_head"): value
        for name, value in model.state_dict().items()
    }
    stock.load_state_dict(names)
    return stock.eval()


class CountingEngine(CachedEngine):
    """Counts the forwards that were really run, and keeps their steps."""

    def __init__(self, model: NemotronLabsDiffusionModel) -> None:
        super().__init__(model.encoder, model.diffusion_head, model.drafter())
        self.steps: list[Step] = []

    def forward(self, step: Step) -> Tensor:
        self.steps.append(step)
        return super().forward(step)
