"""Samples of conversations with pictures: packed, shortened, and as the collator takes them; and `nld-data inspect`."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import IMG, PROCESSOR, asked, data_url, encoded, write_rows

from nld_train.commands.data import main
from nld_train.config.schema import DiffusionConfig, SourceConfig
from nld_train.data.collate import stack
from nld_train.data.conversation_lengths import ConversationPacking
from nld_train.data.conversations import PackedConversations
from nld_train.data.order import make_order
from nld_train.data.packing import make_packing
from nld_train.data.pictures.decode import decode_picture
from nld_train.data.pictures.processor import PictureProcessor
from nld_train.data.questions import questions
from nld_train.data.samples import SampleSettings, TrainingSamples
from nld_train.model.vision.picture_prompt import pictures_of

LENGTH = 96
PICTURES = [encoded(14 + 3 * number, 20 + 5 * number, number) for number in range(6)]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Conversations without pictures, with one, with two in one message, and of two turns with one each."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for number in range(24):
        first, second = ((data_url(PICTURES[(number + more) % 6]),) for more in (0, 1))
        question = f"q{number}"
        rows.append(
            [asked(question), asked(first, question), asked(question, first, second)][number % 3]
            if number % 4
            else asked(first, question) + asked(question * 5, second)
        )
    source = write_rows(folder / "in.jsonl", [{"messages": row} for row in rows])
    words = ["--chat", "--pictures", "--picture-processor", PROCESSOR, "--out", str(folder), "--name", "set"]
    assert main(["prepare", str(source), *words]) == 0
    return str(folder / "set")


def samples_of(prefix: str, length: int, folder: Path, pictures: bool = True) -> TrainingSamples:
    packing = ConversationPacking(length, length, 4, long="shorten")
    make_packing(prefix, packing, 0, folder)
    packed = PackedConversations(prefix, packing, 0, folder)
    diffusion = DiffusionConfig(4, epsilon=1e-3, levels="independent", level_scope="sequence")
    settings = SampleSettings("sft", 0, length, "isolate", diffusion, 2, 263, 3, 2)
    order = make_order(0, [SourceConfig(prefix, 1.0)], {prefix: packed})
    return TrainingSamples(order, settings, pictures)


@pytest.mark.parametrize("length", [LENGTH, 52])
def test_pictures_are_those_of_the_image_tokens(prefix: str, length: int, tmp_path: Path) -> None:
    """In their order, of as many tokens as they have merged patches, and none where a turn was cut away."""
    samples, processor = samples_of(prefix, length, tmp_path), PictureProcessor(7, 2, 56)
    known = [torch.from_numpy(processor.pixel_values(decode_picture(data, None, "x"))) for data in PICTURES]
    copied = pickle.loads(pickle.dumps(samples))  # as it is sent to a worker
    seen = 0
    for index in range(len(samples.order.sets[0])):
        sample = samples[index]
        runs, tokens = [], sample["tokens"].tolist()
        for position, token in enumerate(tokens):
            if token == IMG and (position == 0 or tokens[position - 1] not in (IMG, IMG + 1)):
                runs.append(0)
            runs[-1:] = [runs[-1] + (token == IMG)] if runs else []
        assert runs == [each.shape[1] * each.shape[2] // 14**2 for each in sample["pictures"]]
        assert all(any(torch.equal(each, other) for other in known) for each in sample["pictures"])
        seen += len(runs)
        image = (sample["tokens"] >= IMG) & (sample["tokens"] < IMG + 3)
        assert not (image & sample["answers"]).any()
        assert not (image[1:] & sample["supervised"]).any()
        assert not (sample["noisy_tokens"] >= IMG).any()
        for first, second in zip(sample["pictures"], copied[index]["pictures"], strict=True):
            assert torch.equal(first, second)
    assert seen > 10


def test_the_order_follows_the_text(prefix: str, tmp_path: Path) -> None:
    """Against the rows: each document of a sample names the pictures that it was written with."""
    samples, processor = samples_of(prefix, LENGTH, tmp_path), PictureProcessor(7, 2, 56)
    known = [torch.from_numpy(processor.pixel_values(decode_picture(data, None, "x"))) for data in PICTURES]
    for index in range(len(samples.order.sets[0])):
        sample, expected = samples[index], []
        for document in sample["documents"].unique().tolist():
            tokens = sample["tokens"][sample["documents"] == document].tolist()
            words = bytes(token - 4 for token in tokens if 4 <= token < 260).decode()
            if "q" not in words:
                continue  # padding
            number = int(words.partition("q")[2].partition("A")[0].partition("q")[0])
            count = 2 if number % 4 == 0 else number % 3
            expected += [known[(number + more) % 6] for more in range(count)]
        assert len(expected) == len(sample["pictures"])
        assert all(torch.equal(each, other) for each, other in zip(expected, sample["pictures"], strict=True))


def test_a_micro_batch_has_the_pictures_of_all_samples(prefix: str, tmp_path: Path) -> None:
    samples = samples_of(prefix, LENGTH, tmp_path)
    two = [samples[index] for index in range(2)]
    pictures = stack(two)["pictures"]
    each = [picture for sample in two for picture in sample["pictures"]]
    assert len(pictures) == len(each)
    assert all(torch.equal(a, b) for a, b in zip(pictures.each(), each, strict=True))
    assert "pictures" not in samples_of(prefix, LENGTH, tmp_path, pictures=False)[0]


def test_inspect_shows_and_saves_pictures(prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", prefix]) == 0
    assert "6 with 30 occurrences" in " ".join(capsys.readouterr().out.split())
    assert main(["inspect", prefix, "--conversation", "5", "--save-pictures", str(tmp_path / "saved")]) == 0
    shown = capsys.readouterr().out
    expected = [np.frombuffer(PICTURES[number], np.uint8) for number in (5, 0)]
    saved = [tmp_path / f"saved/conversation-5-picture-{number}.png" for number in range(2)]
    assert [path.read_bytes() for path in saved] == [data.tobytes() for data in expected]
    assert "q5[picture 0: 42 x 56 pixels, 16 tokens][picture 1: 14 x 28 pixels, 4 tokens]" in shown
    assert "[IMG]" not in shown
    assert main(["inspect", prefix, "--save-pictures", str(tmp_path)]) == 2


def test_questions_hold_their_pictures(prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the decoding hook asks them; a file of ids does not, and so is not written."""
    processor = PictureProcessor(7, 2, 56)
    found = questions(prefix, 24, 1000)
    for number, question in enumerate(found):
        count = 2 if number % 4 == 0 else number % 3
        pictures = pictures_of(question.prompt).each()
        data = [PICTURES[(number + more) % 6] for more in range(count)]
        expected = [torch.from_numpy(processor.pixel_values(decode_picture(each, None, "x"))) for each in data]
        assert [each.shape for each in pictures] == [each.shape for each in expected]
        assert all(torch.equal(first, second) for first, second in zip(pictures, expected, strict=True))
    assert len(found) == 24
    assert main(["prompts", prefix, "--out", str(tmp_path / "prompts.jsonl")]) == 2
    assert "has pictures, which prompts of ids do not hold" in capsys.readouterr().err
