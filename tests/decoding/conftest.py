from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import documented_flash
import pytest
import torch
from naive_decoding import Reader
from peft import LoraConfig, get_peft_model
from sampler_cases import SMALL, Models, collected, prompts_of
from tiny_models import MASK, CountingEngine, as_ministral3, random_model, trained_model
from tiny_runs import TINY_MODEL
from torch import nn

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.config.compose import compose_config
from nld_train.decoding import Engine
from nld_train.decoding.engines.megatron_engine import MegatronEngine
from nld_train.decoding.policies.sampler_files import embedding_of
from nld_train.decoding.policies.sampler_network import TrainedSampler
from nld_train.evaluation.sampler_data import Examples
from nld_train.evaluation.sampler_training import SamplerTraining, component_table, train_sampler
from nld_train.model.build import build_model, transformer_config
from nld_train.model.initialize import initialize
from nld_train.model.rotary import RotaryEmbedding


@pytest.fixture(scope="session")
def models() -> dict[str, NemotronLabsDiffusionModel]:
    return {"random": random_model(), "trained": trained_model()}


@pytest.fixture(scope="session")
def readers(models: dict[str, NemotronLabsDiffusionModel]) -> dict[str, Reader]:
    return {name: Reader(as_ministral3(model), MASK) for name, model in models.items()}


@pytest.fixture(scope="module")
def megatron_engine(groups: torch.device) -> MegatronEngine:
    """Over a tiny model with weights of its own; used inside `decoding()`."""
    config = compose_config([*TINY_MODEL, "execution.device=cpu"])
    chunks = build_model(config, transformer_config(config, groups), groups)
    initialize(chunks, config.model, 0)
    return MegatronEngine(chunks, config.model, RotaryEmbedding(config.model, groups))


@pytest.fixture(scope="module")
def open_engine(request: pytest.FixtureRequest) -> Callable[[str], AbstractContextManager[Engine]]:
    """Opens an engine by name: `megatron`, or that of an export by its attention implementation."""

    @contextmanager
    def opened(name: str) -> Iterator[Engine]:
        if name == "megatron":
            with request.getfixturevalue("megatron_engine").decoding() as engine:
                yield engine
            return
        flash = name == "flash"
        with pytest.MonkeyPatch.context() as monkeypatch, torch.no_grad():
            model = random_model() if flash else random_model(attn_implementation=name)
            if flash:
                documented_flash.install(model, monkeypatch)
            yield CountingEngine(model)

    return opened


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter adapter with random weights, as PEFT saves it."""
    directory = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(2)
    peft_model = get_peft_model(random_model(), LoraConfig(r=4, lora_alpha=16, target_modules=["o_proj"]))
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5)
    peft_model.save_pretrained(str(directory))
    return directory


@pytest.fixture(scope="session")
def examples(models: Models) -> tuple[Examples, Examples]:
    """Of the same model, from prompts that differ: to learn from, and held out."""
    engine = CountingEngine(models["trained"])
    return collected(engine, prompts_of(0, 160), 40), collected(engine, prompts_of(1, 40), 40)


@pytest.fixture(scope="session")
def sampler(models: Models, examples: tuple[Examples, Examples]) -> TrainedSampler:
    table = component_table(embedding_of(CountingEngine(models["trained"])), examples[0], SMALL.components)
    return train_sampler(SMALL, table, examples[0], SamplerTraining(steps=200, batch_size=64, learning_rate=3e-3))
