"""The joint loss of `forward` on whole texts, against a naive computation; and `Trainer` on top of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from naive_decoding import Reader
from tiny_shape import EOS, MASK, SHAPE
from tolerance import assert_close_to_rounding, forward_additions, gradient_additions
from torch import Tensor
from transformers import Ministral3Config, Ministral3ForCausalLM

from checkpoint_convert.hf_package.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig
from checkpoint_convert.hf_package.joint_loss import draw_noise


@pytest.fixture
def texts() -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask, and labels that leave out padding alone.

    The first two texts end with the end token, one of them before padding; the third holds it in the middle.
    """
    ids = torch.randint(6, 60, (4, 19), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 15:], mask[2, :4] = 0, 0
    ids[0, 18], ids[1, 14], ids[2, 9] = EOS, EOS, EOS
    return ids, mask, ids.masked_fill(mask == 0, -100)


def naive_loss(
    model: Any, ids: Tensor, mask: Tensor, labels: Tensor, seed: int, block_size: int, ar_weight: float = 1.0
) -> Tensor:
    """Row by row, without padding, block by block: each masked token from a separate forward.

    A text that ends with the end token goes on with end tokens up to a whole block.
    """
    texts = [(ids[row, real], labels[row, real]) for row, real in enumerate(mask.bool())]
    fill = [-len(text) % block_size if text[-1] == EOS else 0 for text, _ in texts]
    hidden = [F.pad(text, (0, count), value=EOS) for (text, _), count in zip(texts, fill, strict=True)]
    targets = [torch.cat([label, label[-1:].expand(count)]) for (_, label), count in zip(texts, fill, strict=True)]
    maskable = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100) != -100
    noise = draw_noise(maskable, torch.Generator().manual_seed(seed))
    ar, diffusion = [], []
    for row, (text, target) in enumerate(texts):
        # Without an AR loss there may be no causal forward.
        logs = model(text[None]).logits[0].log_softmax(-1) if ar_weight else torch.zeros(len(text), 60)
        ar += [-logs[index - 1, target[index]] for index in range(1, len(text)) if target[index] != -100]
        for start in range(0, len(hidden[row]), block_size):
            end = min(start + block_size, len(hidden[row]))
            masked = noise.masked[row, start:end]
            noisy = torch.where(masked, MASK, hidden[row][start:end])
            whole = torch.cat([text[:start], noisy])[None]
            logs = model(whole, mode="block", block_length=end - start).logits[0, start:].log_softmax(-1)
            weight = 1 / noise.probability[row, 0]
            diffusion += [-logs[i, targets[row][start + i]] * weight for i in masked.nonzero().flatten().tolist()]
    return ar_weight * torch.stack(ar).mean() + 0.3 * torch.stack(diffusion).sum() / maskable.sum()


@pytest.mark.parametrize(
    ("seed", "ar_weight", "clean"),
    [
        (0, 1.0, "causal"),
        (1, 1.0, "causal"),
        (2, 1.0, "causal"),
        (3, 0.0, "causal"),
        (4, 0.5, "causal"),
        (5, 0.0, "block"),
        (6, 0.0, "block"),
    ],
)
def test_the_loss_is_the_naive_one(load: Any, texts: Any, seed: int, ar_weight: float, clean: str) -> None:
    """Its gradients too, for every parameter."""
    ids, mask, labels = texts
    model = load()
    model.config.ar_loss_weight, model.config.dlm_clean = ar_weight, clean
    loss = model(ids, mask, labels=labels, generator=torch.Generator().manual_seed(seed)).loss
    found = torch.autograd.grad(loss, list(model.parameters()))
    expected_loss = naive_loss(model, ids, mask, labels, seed, 8, ar_weight)
    additions = forward_additions(model.config, 2 * ids.shape[1]) + ids.numel()
    assert_close_to_rounding(loss, expected_loss, additions)
    expected = torch.autograd.grad(expected_loss, list(model.parameters()))
    for (name, _), one, other in zip(model.named_parameters(), found, expected, strict=True):
        assert bool(one.any()), name
        rows = 2 * ids.numel()
        assert_close_to_rounding(one, other, gradient_additions(model.config, 2 * ids.shape[1], rows))


def test_a_denoising_pass_over_whole_blocks_is_that_of_a_stock_model(load: Any) -> None:
    """With `dlm_clean` "block" tokens see the rest of their own block, up to the block that is denoised."""
    model = load()
    stock = Ministral3ForCausalLM(Ministral3Config(**SHAPE, attn_implementation="eager"))
    names = {
        name.replace("encoder.", "model.").replace("diffusion_head", "lm_head"): value
        for name, value in model.state_dict().items()
    }
    stock.load_state_dict(names)
    model.config.dlm_clean, model.config.ar_loss_weight = "block", 0.0
    ids = torch.randint(6, 60, (21,), generator=torch.Generator().manual_seed(3))
    for block, before in ((5, [8, 8]), (2, [8, 8, 3]), (13, [8])):
        found = model(ids[None], mode="block", block_length=block).logits[0, -block:].clone()
        found[:, MASK] = float("-inf")
        expected = Reader(stock.eval(), MASK).logits(ids.tolist(), block=block, before=before)[-block:]
        assert_close_to_rounding(found, expected, forward_additions(model.config, 21))
    with pytest.raises(ValueError, match=r"^mode: a model with dlm_clean 'block' has no causal forward"):
        model(ids[None])


def test_an_ar_loss_over_whole_blocks_is_refused(load: Any) -> None:
    settings = {**load().config.to_dict(), "dlm_clean": "block", "ar_loss_weight": 1.0}
    with pytest.raises(ValueError, match=r"^ar_loss_weight: 1.0 must be 0 with dlm_clean 'block'"):
        NemotronLabsDiffusionConfig(**settings)


def test_its_logits_are_the_clean_streams(model: Any, texts: Any) -> None:
    ids, mask, labels = texts
    logits = model(ids, mask, labels=labels).logits
    real = mask.bool()
    assert_close_to_rounding(logits[real], model(ids, mask).logits[real], forward_additions(model.config, ids.shape[1]))


def test_packed_documents_are_separate_texts(model: Any) -> None:
    ids = torch.randint(6, 60, (1, 20), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(9), torch.arange(11)])[None]
    changed = ids.clone()
    changed[0, 0] = 7
    noise = [torch.Generator().manual_seed(2) for _ in range(2)]
    labels = ids.clone()
    labels[0, :9] = -100
    losses = [
        model(one, position_ids=positions, labels=labels, generator=generator).loss
        for one, generator in zip((ids, changed), noise, strict=True)
    ]
    assert torch.equal(*losses)


def test_noise_is_fresh_and_within_its_law() -> None:
    maskable = torch.ones(4000, 50, dtype=torch.bool)
    maskable[:, :10] = False
    torch.manual_seed(0)
    first, second = draw_noise(maskable, None), draw_noise(maskable, None)
    assert not torch.equal(first.masked, second.masked)
    assert not bool(first.masked[:, :10].any())
    assert float(first.probability.min()) >= 1e-3
    assert math.isclose(float(first.probability.mean()), 0.5, abs_tol=0.02)
    share = first.masked[:, 10:].float().mean(1)
    assert float((share - first.probability[:, 0]).abs().mean()) < 0.07
    assert float((share - first.probability[:, 0]).mean().abs()) < 0.005


def test_without_the_diffusion_term_there_is_no_second_stream(load: Any, texts: Any) -> None:
    ids, mask, labels = texts
    model = load()
    model.config.dlm_loss_weight = 0.0
    lengths = []
    model.encoder.layers[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    loss = model(ids, mask, labels=labels).loss
    logs = model(ids, mask).logits.log_softmax(-1)[:, :-1]
    supervised = (labels[:, 1:] != -100) & mask[:, :-1].bool()
    expected = -logs.gather(-1, ids[:, 1:, None])[..., 0][supervised].mean()
    assert_close_to_rounding(loss, expected, forward_additions(model.config, ids.shape[1]) + ids.numel())
    assert lengths == [19, 19]


def test_nothing_to_learn_is_a_loss_of_zero(model: Any, texts: Any) -> None:
    ids, mask, labels = texts
    loss = model(ids, mask, labels=torch.full_like(labels, -100)).loss
    assert float(loss.detach()) == 0.0


def test_accumulated_micro_batches_are_one_batch(load: Any) -> None:
    """`Trainer` passes the labels of the whole step: the sum over micro-batches is the mean over all tokens."""
    model = load()
    ids = torch.randint(6, 60, (4, 16))
    ids[2:, 10:] = 0
    mask = torch.ones_like(ids)
    labels = ids.clone()
    labels[2:, 10:] = -100
    model.config.dlm_loss_weight = 0.0
    whole = model(ids, mask, labels=labels).loss
    count = (labels != -100).sum()
    parts = [
        model(ids[i], mask[i], labels=labels[i], num_items_in_batch=count).loss for i in (slice(0, 2), slice(2, 4))
    ]
    # Rows of 16 and of 10 tokens have slightly different shares of next-token rows (15/16 and 9/10).
    torch.testing.assert_close(sum(parts), whole, atol=0.0, rtol=0.02)
    assert float(abs(sum(parts) - whole)) < 0.2 * float(abs(parts[0] + parts[1] - 2 * whole))


def test_gradient_checkpointing_changes_nothing(load: Any, texts: Any) -> None:
    ids, mask, labels = texts
    gradients = []
    for checkpointing in (False, True):
        model = load().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, mask, labels=labels, generator=torch.Generator().manual_seed(0)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(one, other) for one, other in zip(*gradients, strict=True))


def test_lora_fine_tunes_it(load: Any, texts: Any) -> None:
    from peft import LoraConfig, get_peft_model

    ids, mask, labels = texts
    wrapped = get_peft_model(load(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    wrapped(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    touched = {name for name, parameter in wrapped.named_parameters() if parameter.grad is not None}
    assert touched
    assert all("lora_" in name for name in touched)


def test_trainer_fine_tunes_it(load: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = load()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(6, 60, (8, 16), generator=generator)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    # Random weights: the loss of a step is near that of one batch, not of two, whatever the accumulation.
    plain = float(
        model(torch.stack([row["input_ids"] for row in rows]), labels=torch.stack([r["labels"] for r in rows])).loss
    )
    assert all(0.6 * plain < loss < 1.5 * plain for loss in losses)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    trainer.save_model(str(tmp_path / "tuned"))
    again = load(tmp_path / "tuned")
    assert torch.equal(again.diffusion_head.weight, model.diffusion_head.weight)
