"""Logits: those of the stock model, the same under every attention implementation, and of the right visibility."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_exports import ministral3, random_weights, write_export
from tiny_shape import MASK, SHAPE
from tolerance import assert_close_to_rounding, forward_additions
from torch import Tensor

from checkpoint_convert.hf_package.padded_text import NoisyText, PaddedText
from nld_train.masking.layout import StreamLayout
from nld_train.masking.visibility import dense_mask


@pytest.fixture(scope="module")
def stock() -> Any:
    return ministral3(random_weights())


def close(found: Tensor, expected: Tensor) -> None:
    """To the rounding of a forward pass over at most 150 tokens."""
    assert_close_to_rounding(found, expected, forward_additions(SHAPE, 150))


def random_ids(first: int, shape: tuple[int, int]) -> Tensor:
    return torch.randint(first, 60, shape, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def test_causal_logits_are_the_stock_models(model: Any, stock: Any) -> None:
    """Also beyond the original length, where yarn and the query scale differ from plain RoPE."""
    ids = random_ids(0, (2, 150))
    close(model(ids).logits, stock(ids).logits)
    far = torch.arange(200, 230)[None]
    close(model(ids[:, :30], position_ids=far).logits, stock(ids[:, :30], position_ids=far).logits)


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(model: Any, prompts: Any) -> None:
    ids, mask = prompts
    logits = model(ids, attention_mask=mask).logits
    for row in range(3):
        real = mask[row].bool()
        close(logits[row, real], model(ids[row, real][None]).logits[0])


@torch.no_grad()
def test_packed_documents_do_not_see_each_other(model: Any) -> None:
    ids = random_ids(6, (1, 20))
    positions = torch.cat([torch.arange(9), torch.arange(11)])[None]
    logits = model(ids, position_ids=positions).logits
    close(logits[:, :9], model(ids[:, :9]).logits)
    close(logits[:, 9:], model(ids[:, 9:]).logits)


@torch.no_grad()
def test_the_last_block_is_what_decoding_sees(model: Any, prompts: Any) -> None:
    """A denoising forward equals the training rule, whose clean stream is the text before the block."""
    ids, mask = prompts
    block = torch.full((3, 4), MASK)
    block[:, 0] = 9
    for row in range(3):
        real = ids[row, mask[row].bool()][None]
        length = real.shape[1]
        whole = torch.cat([real, block[:1]], 1)
        found = model(whole, mode="block", block_length=4).logits[:, -4:]
        # One document whose blocks begin where this one does: pad the front to a multiple of the block length.
        front = -length % 4
        padded = torch.cat([torch.zeros(1, front).long(), whole], 1)
        seen = torch.cat([torch.zeros(1, front).long(), torch.ones_like(whole)], 1)
        positions = torch.arange(whole.shape[1] + front)[None]
        expected = model(padded, seen, positions, mode="block", clean_input_ids=padded, block_length=4).logits[:, -4:]
        close(found, expected)
    joined = torch.cat([ids, block], 1)
    mask = torch.cat([mask, torch.ones_like(block)], 1)
    batched = model(joined, mask, mode="block", block_length=4).logits
    for row in range(3):
        real = mask[row].bool()
        alone = model(joined[row, real][None], mode="block", block_length=4).logits[0, -4:]
        close(batched[row, -4:], alone)


@pytest.mark.parametrize("block_size", [1, 3, 8])
def test_the_rule_is_the_one_of_training(block_size: int) -> None:
    generator = torch.Generator().manual_seed(block_size)
    documents = torch.cat([torch.zeros(3, 1).long(), (torch.rand(3, 22, generator=generator) < 0.2).long()], 1).cumsum(
        1
    )
    layout = StreamLayout.of(documents, block_size, two_streams=True)
    text = NoisyText.of(PaddedText.of(None, layout.positions, documents), block_size).text
    size = torch.arange(layout.total_length)
    found = text.rule()(torch.arange(3)[:, None, None], size[:, None], size)
    assert torch.equal(found, dense_mask(layout)[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_implementations_agree(load: Any, model: Any, prompts: Any, implementation: str) -> None:
    ids, mask = prompts
    other = load(attn_implementation=implementation)
    assert model.config._attn_implementation == "sdpa"
    noisy = torch.where(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5, MASK, ids)
    real = mask.bool()
    for arguments in (
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": ids, "attention_mask": mask, "mode": "block", "block_length": 3},
        {"input_ids": noisy, "attention_mask": mask, "mode": "block", "clean_input_ids": ids},
    ):
        close(other(**arguments).logits[real], model(**arguments).logits[real])
    losses = [
        one(ids, mask, labels=ids.masked_fill(~real, -100), generator=torch.Generator().manual_seed(1)).loss
        for one in (model, other)
    ]
    close(*losses)
    for call in ("ar_generate", "linear_spec_generate", "generate", "quadratic_spec_generate"):
        settings = {} if call == "ar_generate" else {"block_length": 3}
        found, expected = (getattr(one, call)(ids, 7, attention_mask=mask, **settings) for one in (other, model))
        assert torch.equal(found[0], expected[0]), call
        assert found[1] == expected[1]


def test_arguments_that_contradict_each_other(model: Any) -> None:
    ids = torch.ones(1, 4).long()
    with pytest.raises(ValueError, match="mode: 'diffusion' is neither"):
        model(ids, mode="diffusion")
    with pytest.raises(ValueError, match="labels: the joint loss belongs to mode 'causal'"):
        model(ids, mode="block", labels=ids)
    with pytest.raises(ValueError, match="clean_input_ids: only mode 'block'"):
        model(ids, clean_input_ids=ids)
    with pytest.raises(ValueError, match="block_length: 0 is not 1 or more"):
        model(ids, mode="block", block_length=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_token_id": 60}, "mask_token_id: 60 is not in the vocabulary of 60"),
        ({"block_size": 0}, "block_size: 0 is not 1 or more"),
        ({"dlm_paradigm": "autoregressive"}, "dlm_paradigm: 'autoregressive' is not supported"),
        ({"sliding_window": 8}, "sliding_window: this model has full attention only"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: the head of this model"),
    ],
)
def test_a_config_that_the_model_cannot_do(load: Any, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(write_export(tmp_path / "model", **changes))
