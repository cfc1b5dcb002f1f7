"""The exported model's loss on conversations is that of an sft stage: same tokens, same noise, same gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import hugging_face_config, in_megatron_layout, pair, tiny_config
from test_joint_loss import ALPHA, EOS, MASK, forget_contexts, through_the_schedule  # noqa: F401
from tolerance import approx_to_rounding, assert_close_to_rounding, forward_additions, gradient_additions
from torch import Tensor

from checkpoint_convert.hf_package import joint_loss
from checkpoint_convert.hf_package.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig
from checkpoint_convert.hf_package.joint_loss import Noise, draw_noise
from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.config.schema import Config, DiffusionConfig
from nld_train.data.packed import PackedTokens
from nld_train.data.samples import SampleSettings, noisy_part

pytestmark = pytest.mark.usefixtures("groups")
BLOCK, LENGTH, CAPACITY, PADDING = 4, 31, 64, 9


def conversations(seed: int, count: int) -> list[PackedTokens]:
    """Samples of one to three whole conversations and padding, with answers of any length."""
    draw, found = np.random.default_rng(seed), []
    for _ in range(count):
        documents, answers = np.full(LENGTH + 1, PADDING), np.zeros(LENGTH + 1, dtype=bool)
        tokens, at = draw.integers(6, MASK, LENGTH + 1), 0
        for number in range(int(draw.integers(1, 4))):
            length = int(draw.integers(4, 11))
            documents[at : at + length] = number
            runs = np.sort(draw.integers(0, length, 2))
            answers[at + runs[0] : at + runs[1]] = True
            answers[at + length - int(draw.integers(0, 3)) : at + length] = True
            tokens[at + length - 1] = EOS
            at += length
        found.append(PackedTokens(tokens, documents, answers))
    return found


def megatron_samples(packed: list[PackedTokens], diffusion: DiffusionConfig) -> dict[str, Tensor]:
    """What the stage reads; the noise is replaced."""
    settings = SampleSettings("sft", 0, CAPACITY, "isolate", diffusion, len(packed), MASK + 1, MASK, EOS)
    rows = [
        {"tokens": each.tokens, "documents": each.documents, **noisy_part(settings, index, each)}
        | {"supervised": (each.documents[1:] == each.documents[:-1]) & each.answers[1:]}  # type: ignore[index]
        for index, each in enumerate(packed)
    ]
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def exported(config: Config, theirs: Any) -> NemotronLabsDiffusionModel:
    """The export's model on the oracle's weights."""
    values = hugging_face_config(config.model).to_dict()
    for name in ("model_type", "architectures", "attn_implementation", "_attn_implementation"):
        values.pop(name, None)
    settings = NemotronLabsDiffusionConfig(
        **values,
        mask_token_id=MASK,
        block_size=BLOCK,
        dlm_loss_weight=ALPHA,
        dlm_blocks=config.diffusion.blocks,
        dlm_fill=config.diffusion.fill,
        dlm_clean=config.diffusion.clean,
        ar_loss_weight=1.0 if config.diffusion.clean == "causal" else 0.0,
    )
    model = NemotronLabsDiffusionModel._from_config(settings, attn_implementation="sdpa")
    names = {stock_name(name): name for name in model.state_dict()}
    model.load_state_dict({names[name]: weight for name, weight in theirs.state_dict().items()})
    return model


def stock_name(name: str) -> str:
    """The name of a tensor of the export in the stock model."""
    return name.replace("diffusion_head", "lm_head").replace("encoder.", "model.", 1)


def export_arguments(packed: list[PackedTokens]) -> dict[str, Tensor]:
    """The arguments of the exported model's `forward` for the same samples."""
    rows = []
    for tokens, documents, answers, _ in packed:
        assert answers is not None
        positions = [naive.position_in_document(documents.tolist(), index) for index in range(LENGTH)]
        labels = np.where(answers, tokens, -100)
        rows.append((tokens[:-1], documents[:-1] != PADDING, np.array(positions), labels[:-1]))
    names = ("input_ids", "attention_mask", "position_ids", "labels")
    return {name: torch.from_numpy(np.stack(parts)) for name, parts in zip(names, zip(*rows, strict=True), strict=True)}


@pytest.mark.parametrize(
    ("blocks", "fill", "clean"),
    [
        ("answer", True, "causal"),
        ("document", True, "causal"),
        ("answer", False, "causal"),
        ("answer", True, "block"),
        ("document", True, "block"),
    ],
)
def test_both_compute_the_same(monkeypatch: pytest.MonkeyPatch, blocks: Any, fill: bool, clean: Any) -> None:
    config = tiny_config(diffusion__block_size=BLOCK, model__num_hidden_layers=1)
    config = replace(config, diffusion=replace(config.diffusion, blocks=blocks, fill=fill, clean=clean))
    ar_weight = 1.0 if clean == "causal" else 0.0
    ours, theirs = pair(config)
    model, packed = exported(config, theirs), conversations(3, 4)
    noise = draw_noise_once(monkeypatch)
    loss = model(**export_arguments(packed), generator=torch.Generator().manual_seed(5)).loss
    samples = megatron_samples(packed, config.diffusion)
    samples["masked"] = F.pad(noise[0].masked, (0, CAPACITY - noise[0].masked.shape[1]))
    samples["probability"] = noise[0].probability.expand_as(samples["masked"]).contiguous()
    assert samples["masked"].any()
    assert not (samples["masked"] & ~samples["maskable"]).any()
    ar, diffusion = through_the_schedule(config, ours, samples, "global", ALPHA, 2, ar_weight)
    rows, keys = samples["tokens"].numel(), LENGTH + CAPACITY
    additions = forward_additions(config.model, keys) + rows
    assert float(loss.detach()) == approx_to_rounding(ar_weight * ar + ALPHA * diffusion, additions)
    names = [stock_name(name) for name, _ in model.named_parameters()]
    found = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    expected = in_megatron_layout(config.model, found)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, weight in ours.named_parameters():
        assert_close_to_rounding(weight.grad, expected[name], gradient_additions(config.model, keys, rows), scale=scale)


def draw_noise_once(monkeypatch: pytest.MonkeyPatch) -> list[Noise]:
    """Where the noise that the exported model draws will be."""
    drawn: list[Noise] = []

    def draw(maskable: Tensor, generator: torch.Generator | None) -> Noise:
        drawn.append(draw_noise(maskable, generator))
        return drawn[-1]

    monkeypatch.setattr(joint_loss, "draw_noise", draw)
    return drawn
