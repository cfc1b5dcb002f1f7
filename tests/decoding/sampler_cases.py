"""A small trained sampler's prompts, options and examples."""

from __future__ import annotations

import torch
from tiny_models import CountingEngine
from torch import Tensor

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.decoding import BlockView, DecodeOptions, FixedNumber
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.policies.sampler_network import SamplerShape
from nld_train.evaluation.sampler_data import Examples, collect

Models = dict[str, NemotronLabsDiffusionModel]
PROMPTS = [[12], [40, 41, 42, 43, 44], [7, 30, 9, 22, 22, 51, 8, 33, 17], [25, 26, 20, 21, 33, 34]]
SMALL = SamplerShape(width=32, layers=2, heads=2, components=8)
OPTIONS = DecodeOptions(30, block_length=8, stop_tokens=(3, 49))


def prompts_of(seed: int, number: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(10, 50, (5,), generator=generator).tolist() for _ in range(number)]


def collected(engine: CountingEngine, prompts: list[list[int]], batch_size: int) -> Examples:
    found = collect(engine, prompts, OPTIONS, batch_size)
    assert found is not None
    return found


class Watcher:
    """Commits one position per pass and keeps what it saw."""

    def __init__(self) -> None:
        self.views: list[BlockView] = []

    def choose(self, view: BlockView) -> Tensor:
        self.views.append(view)
        return FixedNumber(1).choose(view)


def views_of(model: NemotronLabsDiffusionModel, prompts: list[list[int]], options: DecodeOptions) -> list[BlockView]:
    watcher = Watcher()
    decode(CountingEngine(model), prompts, "diffusion", options, watcher)
    return watcher.views
