from __future__ import annotations

from pathlib import Path

import pytest
import torch
from naive_decoding import Reader
from peft import LoraConfig, get_peft_model
from tiny_models import MASK, as_ministral3, random_model, trained_model
from torch import nn

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel


@pytest.fixture(scope="session")
def models() -> dict[str, NemotronLabsDiffusionModel]:
    return {"random": random_model(), "trained": trained_model()}


@pytest.fixture(scope="session")
def readers(models: dict[str, NemotronLabsDiffusionModel]) -> dict[str, Reader]:
    return {name: Reader(as_ministral3(model), MASK) for name, model in models.items()}


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
