"""Exports that torchao quantises: every mode, the drafter adapter, saving, and stock Ministral3 beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_exports import CONFIG, random_weights
from tiny_shape import SHAPE
from tolerance import assert_close_to_rounding, forward_additions

pytestmark = pytest.mark.long

NEW, ADDITIONS = 16, forward_additions(SHAPE, 12)


@pytest.fixture(scope="module")
def int8() -> Any:
    """The settings for `from_pretrained`: int8 weights, with the head as it is."""
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["diffusion_head", "lm_head"])


@pytest.fixture(scope="module")
def quantised(load: Any, int8: Any) -> Any:
    return load(quantization_config=int8)


def dequantised(quantised: Any, model: Any) -> Any:
    """`model` with the weights that the quantised ones stand for."""
    for (name, weight), ours in zip(quantised.named_parameters(), model.parameters(), strict=True):
        assert ours.shape == weight.shape, name
        ours.data = weight.dequantize() if hasattr(weight, "qdata") else weight.data
    return model


def test_logits_are_those_of_the_rounded_weights(quantised: Any, load: Any) -> None:
    ids = torch.randint(6, 57, (2, 12), generator=torch.Generator().manual_seed(2))
    before, rounded = load(), dequantised(quantised, load())
    projections = [name for name, weight in quantised.named_parameters() if hasattr(weight, "qdata")]
    assert len(projections) == 7 * CONFIG["num_hidden_layers"]
    for mode in ("causal", "block"):
        ours = quantised(ids, mode=mode).logits
        assert_close_to_rounding(ours, rounded(ids, mode=mode).logits, ADDITIONS)
        assert (ours - before(ids, mode=mode).logits).abs().max() > 1e-2


def test_all_modes(quantised: Any, load: Any, prompts: tuple[torch.Tensor, torch.Tensor]) -> None:
    ids, mask = prompts
    rounded = dequantised(quantised, load())

    def answers(model: Any, mode: str) -> list[list[int]]:
        return model.generate(ids, attention_mask=mask, max_new_tokens=NEW, decoding_mode=mode).tolist()

    for mode in ("ar", "diffusion", "linear", "quadratic"):
        assert answers(quantised, mode) == answers(rounded, mode), mode
    assert answers(quantised, "linear") == answers(quantised, "quadratic") == answers(quantised, "ar")


def test_saved_and_read_again(quantised: Any, load: Any, tmp_path: Path) -> None:
    quantised.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    ids = torch.randint(6, 57, (2, 12), generator=torch.Generator().manual_seed(3))
    assert torch.equal(again(ids).logits, quantised(ids).logits)
    saved = sum(path.stat().st_size for path in (tmp_path / "saved").glob("*.safetensors"))
    assert saved < 0.6 * sum(weight.numel() * 4 for weight in random_weights().values())


def test_stock_ministral3(quantised: Any, int8: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import Ministral3Config, Ministral3ForCausalLM

    weights = {name.replace("encoder.", "model."): weight for name, weight in random_weights().items()}
    weights["lm_head.weight"] = weights.pop("diffusion_head.weight")
    known = {key: value for key, value in CONFIG.items() if key not in ("architectures", "model_type", "auto_map")}
    Ministral3Config(**known).save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    stock: Any = Ministral3ForCausalLM.from_pretrained(tmp_path, quantization_config=int8)
    ids = torch.randint(6, 57, (2, 12), generator=torch.Generator().manual_seed(4))
    assert_close_to_rounding(quantised(ids).logits, stock(ids).logits, ADDITIONS)
