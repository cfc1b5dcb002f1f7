from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_exports import write_adapter, write_export

Load = Callable[..., Any]


@pytest.fixture(scope="session", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is downloaded, and `transformers` copies the code of exports to a temporary folder."""
    import transformers.dynamic_module_utils as dynamic

    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with a drafter adapter."""
    directory = write_export(tmp_path_factory.mktemp("exports") / "tiny-model")
    write_adapter(directory / "linear_spec_lora")
    return directory


@pytest.fixture(scope="session")
def load(export: Path) -> Load:
    """Loads an export as its users do."""
    from transformers import AutoModelForCausalLM

    def loaded(directory: Path = export, **settings: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, **settings)

    return loaded


@pytest.fixture(scope="session")
def model(load: Load) -> Any:
    return load()


@pytest.fixture
def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of 12, 7 and 3 tokens, padded before and after; and their attention mask."""
    ids = torch.randint(6, 57, (3, 12), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    mask[2, 3:] = 0
    return ids * mask, mask
