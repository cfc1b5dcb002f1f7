"""Decoding with pictures of a real tower, from a checkpoint and from an export, against `transformers`' own model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import drawn
from transformers import AutoModelForImageTextToText, Mistral3ForConditionalGeneration
from vision_models import BREAK, END, IMG, stock_answer, vision_folder

from nld_train.decoding import DecodeOptions, Engine, Mode, Threshold, decode
from nld_train.decoding.load import find_source
from nld_train.model.vision.picture_prompt import PicturePrompt, pictures_of
from nld_train.model.vision.pictures import Pictures

MODES: tuple[Mode, ...] = ("ar", "diffusion", "linear", "quadratic")
NEW = 12


def picture_tokens(size: tuple[int, int]) -> list[int]:
    rows, columns = size[0] // 8, size[1] // 8
    return [*([*[IMG] * columns, BREAK] * rows)[:-1], END]


def prompt(parts: Sequence[int | tuple[int, int]], seed: int) -> Sequence[int]:
    """Words, as ids, and random pictures of these sizes."""
    ids: list[int] = []
    pictures = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        else:
            ids += picture_tokens(part)
            pictures.append(drawn(part, seed + len(pictures)))
    return PicturePrompt(ids, Pictures.of(pictures)) if pictures else ids


PROMPTS = [
    prompt([40, (16, 24), 50, 51], 1),
    prompt([60, 61, 62], 0),
    prompt([(8, 8), 70, (24, 8), (8, 32), 71, 72, 73], 2),
    prompt([80, 81, (16, 24)], 3),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision_folder(tmp_path_factory)


@pytest.fixture(scope="module")
def stock(folder: Path) -> list[list[int]]:
    model = Mistral3ForConditionalGeneration.from_pretrained(folder / "source").eval()
    return [stock_answer(model, each, NEW) for each in PROMPTS]


@pytest.fixture(scope="module", params=["imported", "exported"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with find_source(folder / request.param).open() as engine:
        yield engine


def answers(engine: Engine, mode: Mode, prompts: Sequence[Sequence[int]] = PROMPTS, **more: Any) -> list[list[int]]:
    policy = Threshold(0.05) if mode == "diffusion" else None
    options = DecodeOptions(NEW, block_length=5, stop_tokens=(2,))
    return decode(engine, prompts, mode, options, policy, **more).token_ids


@pytest.mark.parametrize("mode", ["ar", "linear", "quadratic"])
def test_greedy_answers_are_those_of_transformers(engine: Engine, stock: list[list[int]], mode: Mode) -> None:
    assert answers(engine, mode) == stock
    assert len(set(map(tuple, stock))) == len(stock)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_with_and_without_pictures_answers_as_each_alone(engine: Engine, mode: Mode) -> None:
    together = answers(engine, mode)
    assert answers(engine, mode, batch_size=2) == together
    assert [answers(engine, mode, [each])[0] for each in PROMPTS] == together
    # The same words about another picture of the same size.
    other = [
        *PROMPTS[:2],
        PicturePrompt(list(PROMPTS[2]), Pictures.of([drawn(size, 9) for size in ((8, 8), (24, 8), (8, 32))])),
    ]
    found = answers(engine, mode, [*other, PROMPTS[3]])
    assert [old == new for old, new in zip(together, found, strict=True)] == [True, True, False, True]


def test_the_export_generates_from_what_a_processor_returns(folder: Path, stock: list[list[int]]) -> None:
    """Padded batches of ids with all pictures in one tensor, in both forms of `generate` and in every mode."""
    model = AutoModelForImageTextToText.from_pretrained(folder / "exported", trust_remote_code=True).eval()
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(each)) + list(each) for each in PROMPTS])
    pictures = Pictures.joined([pictures_of(each) for each in PROMPTS])
    given = {
        "attention_mask": (torch.arange(longest) >= torch.tensor([[longest - len(each)] for each in PROMPTS])).long(),
        "pixel_values": pictures.pixel_values,
        "image_sizes": pictures.sizes,
    }
    for mode in ("ar", "linear", "quadratic"):
        found = model.generate(ids, **given, max_new_tokens=NEW, do_sample=False, decoding_mode=mode, block_length=5)
        assert [row[longest:][: len(right)].tolist() for row, right in zip(found, stock, strict=True)] == stock, mode
    for method in (model.ar_generate, model.linear_spec_generate, model.quadratic_spec_generate):
        assert torch.equal(method(ids, NEW, **given)[0][:, :longest], ids)
        assert [
            row[longest:][: len(right)].tolist() for row, right in zip(method(ids, NEW, **given)[0], stock, strict=True)
        ] == stock
    denoised, _ = model.generate(ids, max_new_tokens=NEW, block_length=5, threshold=0.05, **given)
    with find_source(folder / "exported").open() as engine:
        expected = answers(engine, "diffusion")
    assert [row[longest:][: len(right)].tolist() for row, right in zip(denoised, expected, strict=True)] == expected

    def refuse(message: str, **changed: Any) -> None:
        with pytest.raises(ValueError) as caught:
            model.linear_spec_generate(ids, NEW, **{**given, **changed})
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    refuse(
        "prompt 2 has 8 [IMG] tokens (id 260), and its 1 picture needs 1",
        pixel_values=pictures.pixel_values[:2],
        image_sizes=pictures.sizes[:2],
    )
    refuse(
        "pixel_values: 6 pictures, and the [IMG] tokens (id 260) of the prompts are those of 5",
        pixel_values=torch.cat([pictures.pixel_values, pictures.pixel_values[:1]]),
        image_sizes=torch.cat([pictures.sizes, pictures.sizes[:1]]),
    )
    refuse("pixel_values: shape (24, 32) is not [pictures, 3, height, width]", pixel_values=pictures.pixel_values[0, 0])
    refuse("as pixel_values has them", image_sizes=pictures.sizes * 2)
    refuse("image_sizes: pictures need pixel_values too", pixel_values=None)
    refuse("has 6 [IMG] tokens (id 260), and no picture", pixel_values=None, image_sizes=None)
