"""The joint loss of `forward` on conversations, whose prompts have labels of -100, against a naive computation."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_exports import STOP
from tiny_shape import EOS, MASK
from tolerance import assert_close_to_rounding, forward_additions, gradient_additions
from torch import Tensor

from checkpoint_convert.hf_package.joint_loss import draw_noise

BLOCK = 4


@dataclass(frozen=True)
class Conversations:
    """A padded batch, and the answers of its rows: first token and end of each, and whether it is filled."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    answers: list[list[tuple[int, int, bool]]]


@pytest.fixture(scope="module")
def batch() -> Conversations:
    """Rows of a chat: several answers, answers only, no answer, one that the row cuts, padding on either side."""
    lengths, left = (22, 15, 9, 22, 17, 12), (0, 0, 4, 0, 5, 0)
    answers = [
        [(3, 9, True), (12, 13, True), (17, 22, True)],  # the first ends with another token, and the row goes on
        [(5, 15, True)],
        [],
        [(4, 8, True), (11, 22, False)],
        [(0, 3, True), (6, 17, True)],
        [(0, 12, True)],
    ]
    ids = torch.randint(6, 58, (6, 22), generator=torch.Generator().manual_seed(0))
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (length, begin) in enumerate(zip(lengths, left, strict=True)):
        mask[row, begin : begin + length] = 1
        for start, end, _ in answers[row]:
            if end == length and row != 3:
                ids[row, begin + end - 1] = STOP if row == 1 else EOS
            labels[row, begin + start : begin + end] = ids[row, begin + start : begin + end]
    return Conversations(ids, mask, labels, answers)


def naive_loss(model: Any, batch: Conversations, seed: int, document: bool = False, fill: bool = True) -> Tensor:
    """Row by row, without padding, block by block: each masked token from a forward of its own."""
    texts = [row[real] for row, real in zip(batch.ids, batch.mask.bool(), strict=True)]
    blocks = [naive_blocks(*row, document, fill) for row in zip(texts, batch.answers, strict=True)]
    rows = [
        torch.tensor([index >= first for begin, hidden, first in row for index in range(begin, begin + len(hidden))])
        for row in blocks
    ]
    maskable = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).bool()
    noise = draw_noise(maskable, torch.Generator().manual_seed(seed))
    ar, diffusion = [], []
    for row, (text, answers) in enumerate(zip(texts, batch.answers, strict=True)):
        logs, at = model(text[None]).logits[0].log_softmax(-1), 0
        ar += [-logs[i - 1, text[i]] for start, end, _ in answers for i in range(max(start, 1), end)]
        for begin, hidden, _ in blocks[row]:
            masked = noise.masked[row, at : at + len(hidden)]
            whole = torch.cat([text[:begin], torch.where(masked, MASK, hidden)])[None]
            logs = model(whole, mode="block", block_length=len(hidden)).logits[0, begin:].log_softmax(-1)
            diffusion += [-logs[i, hidden[i]] / noise.probability[row, 0] for i in masked.nonzero().flatten().tolist()]
            at += len(hidden)
    return torch.stack(ar).mean() + 0.3 * torch.stack(diffusion).sum() / maskable.sum()


def naive_blocks(
    text: Tensor, answers: list[tuple[int, int, bool]], document: bool, fill: bool
) -> list[tuple[int, Tensor, int]]:
    """Where each block begins in the text, the tokens that it hides, and the first index that is maskable."""
    found = []
    for start, end, filled in answers:
        first = start - start % BLOCK if document else start
        hidden = text[first:end]
        if filled and fill:
            hidden = torch.cat([hidden, torch.full([-len(hidden) % BLOCK], EOS)])
        found += [(first + at, hidden[at : at + BLOCK], start) for at in range(0, len(hidden), BLOCK)]
    return found


SETTINGS: list[tuple[str, bool]] = [("answer", True), ("answer", False), ("document", True)]


@pytest.mark.parametrize(("blocks", "fill"), SETTINGS)
def test_the_loss_of_conversations_is_the_naive_one(load: Any, batch: Conversations, blocks: str, fill: bool) -> None:
    """Its gradients too, for every parameter."""
    model = load()
    model.config.dlm_blocks, model.config.dlm_fill = blocks, fill
    generator = torch.Generator().manual_seed(1)
    loss = model(batch.ids, batch.mask, labels=batch.labels, block_length=BLOCK, generator=generator).loss
    found = torch.autograd.grad(loss, list(model.parameters()))
    expected_loss = naive_loss(model, batch, 1, blocks == "document", fill)
    keys = batch.ids.shape[1] * 3
    assert_close_to_rounding(loss, expected_loss, forward_additions(model.config, keys) + batch.ids.numel())
    expected = torch.autograd.grad(expected_loss, list(model.parameters()))
    for (name, _), one, other in zip(model.named_parameters(), found, expected, strict=True):
        assert bool(one.any()), name
        assert_close_to_rounding(one, other, gradient_additions(model.config, keys, 3 * batch.ids.numel()))


def test_the_noisy_stream_has_the_answers_blocks_alone(load: Any, batch: Conversations) -> None:
    """P prompt and R answer tokens cost P + 2R positions and the fill, and none where there is no answer."""
    model = load()
    lengths = []
    model.encoder.layers[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    ids = batch.ids[5:6, :12]
    answers = torch.cat([torch.full((1, 5), -100), ids[:, 5:]], dim=1)
    for labels, noisy in ((answers, 8), (torch.full_like(ids, -100), 1), (ids, 12)):
        model(ids, labels=labels, block_length=BLOCK)
        assert lengths.pop() == 12 + noisy


def test_packed_conversations_are_those_of_rows(
    load: Any, batch: Conversations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Position ids that start again separate conversations, as collators without padding write them."""
    model = load()
    joint_loss = sys.modules[type(model).__module__.rpartition(".")[0] + ".joint_loss"]
    everything = lambda maskable, _: joint_loss.Noise(maskable, torch.ones(len(maskable), 1))  # noqa: E731
    monkeypatch.setattr(joint_loss, "draw_noise", everything)
    real = batch.mask.bool()
    ids, labels = batch.ids[real][None], batch.labels[real][None]
    positions = torch.cat([torch.arange(int(row.sum())) for row in real])[None]
    packed = model(ids, position_ids=positions, labels=labels, block_length=BLOCK).loss
    rows = model(batch.ids, batch.mask, labels=batch.labels, block_length=BLOCK).loss
    additions = forward_additions(model.config, 66) + ids.numel()
    assert_close_to_rounding(packed, rows, additions)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (packed, rows)]
    for one, other in zip(*gradients, strict=True):
        assert_close_to_rounding(one, other, gradient_additions(model.config, 66, 3 * ids.numel()))


def test_prompts_are_no_targets(model: Any, batch: Conversations) -> None:
    """The loss depends on what a prompt says, and on no label but those of answers."""
    ids, labels = batch.ids[:1].clone(), batch.labels[:1]
    loss = model(ids, labels=labels, generator=torch.Generator().manual_seed(0)).loss
    ids[0, 10] = 7 if ids[0, 10] != 7 else 8
    assert loss != model(ids, labels=labels, generator=torch.Generator().manual_seed(0)).loss
    # After the last answer nothing is left to learn.
    longer, targets = (F.pad(tensor, (0, 3), value=value) for tensor, value in ((ids, 9), (labels, -100)))
    found, expected = (
        model(text, labels=target, generator=torch.Generator().manual_seed(0)).loss
        for text, target in ((longer, targets), (ids, labels))
    )
    assert_close_to_rounding(found, expected, forward_additions(model.config, 66))


def collate(rows: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """Prompts and completions as fine-tuning trainers collate them: padded on the right, prompts and padding -100.

    Some also pass `use_cache`.
    """
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, completion in rows:
        padding = width - len(prompt) - len(completion)
        batch["input_ids"].append(prompt + completion + [0] * padding)
        batch["attention_mask"].append([1] * (width - padding) + [0] * padding)
        batch["labels"].append([-100] * len(prompt) + completion + [-100] * padding)
    return {name: torch.tensor(values) for name, values in batch.items()} | {"use_cache": False}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_learns_answers(load: Any, tmp_path: Path, checkpointing: bool) -> None:
    """`Trainer` with collated conversations, gradient accumulation and unequal batches."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    draw = torch.Generator().manual_seed(0)
    lengths = [(3, 2), (7, 9), (4, 1), (2, 12), (9, 5), (5, 3)]
    rows = [
        (torch.randint(6, 58, (prompt,), generator=draw).tolist(), [*range(20, 19 + answer), STOP])
        for prompt, answer in lengths
    ]
    model = load()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=checkpointing,
        learning_rate=3e-3,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )

    def loss() -> float:
        with torch.no_grad():
            return float(model(**collate(rows), generator=torch.Generator().manual_seed(1)).loss)

    before = loss()
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # The mean of a step is that of its tokens, not a sum over two micro-batches. A single one varies with 1/p.
    assert 0.5 * before < sum(losses) / len(losses) < 1.4 * before
    assert loss() < 0.8 * before
