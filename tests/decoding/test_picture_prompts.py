"""Prompts with pictures. Their features are those of a tower that reads the id of an ordinary token from each square.

So what a picture shows can also be written in ids, and the decoder must continue both alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import CountingEngine
from torch import Tensor

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.decoding import DecodeOptions, Engine, Mode, Threshold, decode
from nld_train.decoding.algorithms.kept_text import KeptText
from nld_train.model.vision.picture_prompt import ImageTokens, PicturePrompt
from nld_train.model.vision.pictures import Pictures

MODES: tuple[Mode, ...] = ("ar", "diffusion", "linear", "quadratic")
IMG, BREAK, END, EDGE = 6, 7, 8, 2
TOKENS = ImageTokens(IMG, EDGE)

Shown = Sequence[Sequence[int]]
WIDE: Shown = [[20, 21, 22], [23, 24, 25]]
TALL: Shown = [[30], [31], [32]]
SMALL: Shown = [[40]]
# Words and pictures; the third has none, and the last one begins and ends with one.
PROMPTS: list[list[int | Shown]] = [[11, WIDE, 12], [13, 14, TALL, 15, SMALL, 16], [17, 18, 19], [SMALL, 10, 11, WIDE]]


def drawn(shown: Shown) -> Tensor:
    """A picture whose squares have the brightness of ids: `[3, rows * EDGE, columns * EDGE]`."""
    return torch.tensor(shown).float().repeat_interleave(EDGE, 0).repeat_interleave(EDGE, 1).expand(3, -1, -1)


def laid_out(prompt: Sequence[int | Shown], with_pictures: bool) -> list[int]:
    """The ids of a prompt, with `[IMG]` tokens or with what the pictures show."""
    ids: list[int] = []
    for part in prompt:
        if isinstance(part, int):
            ids.append(part)
            continue
        for row in part:
            ids += [*([IMG] * len(row) if with_pictures else row), BREAK]
        ids[-1] = END
    return ids


def with_pictures(prompt: Sequence[int | Shown]) -> PicturePrompt:
    pictures = [drawn(part) for part in prompt if not isinstance(part, int)]
    return PicturePrompt(laid_out(prompt, True), Pictures.of(pictures))


class ReadingEngine(CountingEngine):
    """A text model with a tower that reads ids from brightness."""

    def __init__(self, model: NemotronLabsDiffusionModel) -> None:
        super().__init__(model)
        self.image_tokens = TOKENS
        self._features = lambda pictures: model.encoder.embed_tokens(self._read(pictures))
        self.seen: list[int] = []

    def _read(self, pictures: Pictures) -> Tensor:
        self.seen.append(len(pictures))
        return torch.cat([each[0, ::EDGE, ::EDGE].flatten() for each in pictures.each()]).long()


@pytest.fixture
def engine(models: dict[str, NemotronLabsDiffusionModel]) -> ReadingEngine:
    return ReadingEngine(models["trained"])


def texts(engine: Engine, prompts: Sequence[Sequence[int]], mode: Mode, **more: Any) -> Any:
    policy = Threshold(0.5) if mode == "diffusion" else None
    return decode(engine, prompts, mode, DecodeOptions(13, block_length=4), policy, **more)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("mode", MODES)
def test_features_are_read_as_the_tokens_that_have_these_embeddings(
    engine: ReadingEngine, mode: Mode, batch_size: int | None
) -> None:
    """In one batch with a prompt without pictures, all at once and as slots become free, and each alone."""
    written = texts(engine, [laid_out(prompt, False) for prompt in PROMPTS], mode)
    assert not engine.seen
    prompts = [with_pictures(prompt) for prompt in PROMPTS]
    shown = texts(engine, prompts, mode, batch_size=batch_size)
    for name in ("token_ids", "sequence_forwards", "accepted", "prefill_tokens"):
        assert getattr(shown, name) == getattr(written, name), name
    assert sum(engine.seen) == 5
    assert [texts(engine, [prompt], mode).token_ids[0] for prompt in prompts] == written.token_ids


@pytest.mark.parametrize("mode", MODES)
def test_another_picture_changes_its_own_text_alone(models: dict[str, NemotronLabsDiffusionModel], mode: Mode) -> None:
    engine = ReadingEngine(models["random"])
    before = texts(engine, [with_pictures(prompt) for prompt in PROMPTS], mode).token_ids
    changed = [*PROMPTS[:3], [SMALL, 10, 11, [[44, 12, 43], [12, 13, 49]]]]
    after = texts(engine, [with_pictures(prompt) for prompt in changed], mode).token_ids
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, True, False]


def test_pictures_in_a_chat_are_seen_once(models: dict[str, NemotronLabsDiffusionModel]) -> None:
    """A picture that stays where it was is in the cache; one that changed is computed, with all after it."""
    engine, written, kept = ReadingEngine(models["trained"]), CountingEngine(models["trained"]), KeptText(room=128)
    first: list[int | Shown] = [11, WIDE, 12, TALL, 13]
    for prompt, seen, computed in (
        (first, 2, len(laid_out(first, True))),
        ([*first, 29, SMALL, 15], 1, 4),
        ([*first, 29, [[41]], 15], 1, 3),  # the same ids, another picture: from it on
        ([11, WIDE, 12, [[30], [39], [32]], 13], 1, 7),
        ([11, WIDE, 12, [[30], [39]], 13], 1, 5),  # begins as the one before: a picture is computed whole
        ([11, WIDE, 12, [[30], [39]]], 0, 1),  # the last token is computed: [IMG_END]
        ([11, 12], 0, 1),
    ):
        engine.seen.clear()
        found = texts(engine, [with_pictures(prompt)], "linear", kept=kept)
        assert found.token_ids == texts(written, [laid_out(prompt, False)], "linear").token_ids
        assert (sum(engine.seen), found.prefill_tokens[0]) == (seen, computed), prompt


NO_FIT = {
    "prompt 1 has 2 [IMG] tokens (id 6), and its 1 picture needs 3": ([9, IMG, IMG, 9], [drawn([[1], [2], [3]])]),
    "prompt 1 has 1 [IMG] tokens (id 6), and its 2 pictures need 2": ([9, IMG, 9], [drawn([[1]]), drawn([[1]])]),
    "prompt 1 has 1 [IMG] tokens (id 6), and no picture": ([9, IMG, 9], []),
    "picture 0 of prompt 1 has 3 x 2 pixels; both must be multiples of 2": ([9, IMG], [torch.zeros(3, 2, 3)]),
    "prompt 1 has 260 tokens, which leaves no room in the context of 256": (
        [9] * 200 + [IMG] * 60,
        [drawn([[1] * 60])],
    ),
}


@pytest.mark.parametrize("message", NO_FIT)
def test_pictures_that_do_not_fit_their_tokens(engine: ReadingEngine, message: str) -> None:
    ids, pictures = NO_FIT[message]
    with pytest.raises(ValueError) as caught:
        texts(engine, [[9], PicturePrompt(ids, Pictures.of(pictures))], "ar")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pictures_for_a_text_model(models: dict[str, NemotronLabsDiffusionModel]) -> None:
    engine = CountingEngine(models["random"])
    with pytest.raises(ValueError, match="prompt 0 has 1 picture, and this model has no vision tower"):
        texts(engine, [with_pictures([9, SMALL])], "ar")
    texts(engine, [[9, IMG]], "ar")  # there an ordinary token
