"""A vision-language model against `transformers`' Mistral3 wrapper on the same weights, in one stream and in two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import naive
import pytest
import torch
from megatron.core.transformer.module import Float16Module
from oracle import build
from pictures import drawn, text_with_pictures
from torch import Tensor
from vision_oracle import in_our_layout, vision_config, vision_pair

from nld_train.config.schema import Config
from nld_train.masking.layout import StreamLayout
from nld_train.model import streams
from nld_train.model.build import transformer_config
from nld_train.model.ministral3 import Ministral3Model
from nld_train.model.rotary import RotaryEmbedding
from nld_train.model.vision import encoder
from nld_train.model.vision.pictures import Pictures, image_index

pytestmark = pytest.mark.usefixtures("groups")
# Texts of one length: numbers are text tokens, pairs are heights and widths of pictures.
Parts = Sequence[int | tuple[int, int]]
LENGTH = 44
NONE: Parts = [LENGTH]
ONE: Parts = [5, (16, 24), LENGTH - 13]  # 2 rows of 3 and a break
SEVERAL: Parts = [2, (8, 8), 3, (24, 40), 1, (64, 8), LENGTH - 2 - 2 - 3 - 18 - 1 - 16]


@pytest.fixture(autouse=True)
def forget_contexts() -> Iterator[None]:
    yield
    streams.clear()


def batch_of(config: Config, rows: Sequence[Parts], seed: int = 1) -> tuple[Tensor, list[list[Tensor]]]:
    """Tokens `[b, LENGTH]`, and the pictures of each row."""
    assert config.model.vision is not None
    tokens = [text_with_pictures(config.model.vision, row, seed + number) for number, row in enumerate(rows)]
    sizes = [[part for part in row if isinstance(part, tuple)] for row in rows]
    pictures = [[drawn(size, seed + 10 * n + k) for k, size in enumerate(row)] for n, row in enumerate(sizes)]
    return torch.tensor(tokens), pictures


def logits(
    config: Config,
    model: Ministral3Model,
    tokens: Tensor,
    pictures: list[list[Tensor]],
    documents: Tensor,
    two_streams: bool,
) -> Tensor:
    """All logits `[b, S, vocab]` for stacked streams."""
    assert config.model.vision is not None
    layout = StreamLayout.of(documents, config.diffusion.block_size, two_streams)
    context = streams.StreamContext.of(layout, RotaryEmbedding(config.model, torch.device("cpu")), torch.float32)
    index = image_index(tokens, config.model.vision.image_token_id, begin=layout.noisy_length)
    seen = Pictures.of([picture for row in pictures for picture in row])
    found = model(tokens, streams.register(context), pictures=seen, image_index=index)
    return found.view(tokens.shape[1], len(tokens), -1).transpose(0, 1)


def oracle_logits(theirs: torch.nn.Module, tokens: Tensor, pictures: list[list[Tensor]], **arguments: Tensor) -> Tensor:
    """The same from `transformers`, sample by sample."""
    rows = []
    for number, row in enumerate(pictures):
        seen = Pictures.of(row)
        images = {"pixel_values": seen.pixel_values, "image_sizes": seen.sizes} if row else {}
        own = {name: value[number : number + 1] for name, value in arguments.items()}
        rows.append(theirs(tokens[number : number + 1], use_cache=False, **images, **own).logits)
    return torch.cat(rows)


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_the_ar_forward_is_the_wrappers(bias: bool) -> None:
    """A batch with several pictures of odd sizes in one text, one in another and none in the third."""
    config = vision_config(bias)
    ours, theirs = vision_pair(config)
    tokens, pictures = batch_of(config, [SEVERAL, NONE, ONE])
    documents = torch.zeros(3, LENGTH, dtype=torch.int64)
    found = logits(config, ours, tokens, pictures, documents, two_streams=False)
    expected = oracle_logits(theirs, tokens, pictures)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # Pictures tell: of others the logits are not these.
    others = [[picture.flip(-1) for picture in row] for row in pictures]
    changed = (logits(config, ours, tokens, others, documents, two_streams=False) - expected).abs().amax((1, 2))
    assert changed[1] < 1e-5 < 1e-2 < min(changed[0], changed[2])


@torch.no_grad()
def test_a_batch_without_pictures() -> None:
    config = vision_config()
    ours, theirs = vision_pair(config)
    tokens, pictures = batch_of(config, [NONE])
    found = logits(config, ours, tokens, pictures, torch.zeros(1, LENGTH, dtype=torch.int64), two_streams=False)
    torch.testing.assert_close(found, oracle_logits(theirs, tokens, pictures), atol=1e-5, rtol=1e-5)


def two_streams_of(config: Config) -> tuple[Tensor, list[list[Tensor]], list[list[int]]]:
    """Stacked streams of two packed conversations with pictures; the noisy stream is text."""
    tokens, pictures = batch_of(config, [SEVERAL, ONE])
    noisy, _ = batch_of(config, [NONE, NONE], seed=5)
    begin_of_second = 2 + 2 + 3 + 18 + 1
    documents = [[0] * begin_of_second + [1] * (LENGTH - begin_of_second), [0] * 20 + [1] * (LENGTH - 20)]
    return torch.cat([noisy, tokens], dim=1), pictures, documents


def naive_arguments(documents: list[list[int]], block_size: int) -> dict[str, Tensor]:
    visible = torch.tensor([naive.visibility(row, block_size, True) for row in documents])
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min).unsqueeze(1)
    positions = [[naive.position_in_document(row, index) for index in range(len(row))] * 2 for row in documents]
    return {"attention_mask": mask, "position_ids": torch.tensor(positions)}


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_logits_and_gradients_of_two_streams_are_the_wrappers(recompute: str) -> None:
    """Under a naive mask, with the gradients of tower and projector."""
    config = vision_config(bias=True, diffusion__block_size=6, execution__recompute=recompute)
    ours, theirs = vision_pair(config)
    ours.train()
    tokens, pictures, documents = two_streams_of(config)
    found = logits(config, ours, tokens, pictures, torch.tensor(documents), two_streams=True)
    expected = oracle_logits(theirs, tokens, pictures, **naive_arguments(documents, 6))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(4)) / 100
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    gradients = in_our_layout(config, {name: weight.grad for name, weight in theirs.named_parameters()})
    for name, weight in ours.named_parameters():
        scale = gradients[name].abs().max()
        assert scale > 0, name
        assert (weight.grad - gradients[name]).abs().max() < 3e-5 * scale, name


@torch.no_grad()
def test_streams_and_conversations_do_not_mix() -> None:
    """The clean stream is the AR forward; noisy tokens change nothing in it, nor a picture another conversation."""
    config = vision_config(diffusion__block_size=6)
    ours, _ = vision_pair(config)
    tokens, pictures, documents = two_streams_of(config)
    borders = torch.tensor(documents)
    both = logits(config, ours, tokens, pictures, borders, two_streams=True)
    alone = logits(config, ours, tokens[:, LENGTH:], pictures, borders, two_streams=False)
    torch.testing.assert_close(both[:, LENGTH:], alone, atol=1e-5, rtol=1e-5)
    flipped = tokens.clone()
    flipped[:, 7] = config.model.mask_token_id
    again = logits(config, ours, flipped, pictures, borders, two_streams=True)
    assert torch.equal(again[:, LENGTH:], both[:, LENGTH:])
    assert not torch.equal(again[:, :LENGTH], both[:, :LENGTH])
    # The last picture of the first sample is in its second conversation.
    others = [[*pictures[0][:2], pictures[0][2].flip(-2)], pictures[1]]
    changed = (logits(config, ours, tokens, others, borders, two_streams=True) - both).abs().amax(-1)
    second = borders.repeat(1, 2)[0] == 1
    assert changed[0, ~second].max() < 1e-5 < 1e-2 < changed[0, second].max()
    assert changed[1].max() < 1e-5


@torch.no_grad()
def test_an_image_token_id_in_the_noisy_stream_is_no_picture() -> None:
    config = vision_config(diffusion__block_size=6)
    ours, _ = vision_pair(config)
    tokens, pictures, documents = two_streams_of(config)
    tokens[0, 3] = 10
    logits(config, ours, tokens, pictures, torch.tensor(documents), two_streams=True)


@torch.no_grad()
def test_the_number_of_pictures_at_once_changes_no_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    config = vision_config()
    ours, _ = vision_pair(config)
    pictures = Pictures.of([drawn(size, seed) for seed, size in enumerate([(8, 8), (24, 40), (16, 8), (8, 64)])])
    assert ours.vision is not None
    together = ours.vision(pictures)
    assert together.shape == (1 + 15 + 2 + 8, config.model.hidden_size)
    for limit, groups in ((1, 4), (60, 3), (72, 2)):
        monkeypatch.setattr(encoder, "PATCHES_TOGETHER", limit)
        assert len(list(ours.vision._groups(pictures))) == groups
        torch.testing.assert_close(ours.vision(pictures), together, atol=1e-5, rtol=1e-5)


def test_without_pictures_every_weight_of_the_tower_has_a_gradient_of_zero() -> None:
    config = vision_config()
    ours, _ = vision_pair(config)
    tokens, pictures = batch_of(config, [NONE])
    documents = torch.zeros(1, LENGTH, dtype=torch.int64)
    logits(config, ours, tokens, pictures, documents, two_streams=False).logsumexp(-1).sum().backward()
    assert ours.vision is not None
    assert all(weight.grad is not None and not weight.grad.any() for weight in ours.vision.parameters())
    assert ours.embedding.word_embeddings.weight.grad.any()


def test_rotary_frequencies_stay_float32_in_bf16() -> None:
    config = vision_config(execution__precision="bf16")
    model = build(config)
    wrapped = Float16Module(transformer_config(config, torch.device("cpu")), model)
    assert wrapped.module.vision.vision_tower.patch_conv.weight.dtype == torch.bfloat16
    buffers = dict(wrapped.module.vision.named_buffers())
    expected = dict(build(vision_config()).vision.named_buffers())
    assert buffers
    for name, buffer in buffers.items():
        assert buffer.dtype == expected[name].dtype == torch.float32
        assert torch.equal(buffer, expected[name])
