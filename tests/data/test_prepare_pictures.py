"""`nld-data prepare --chat --pictures`: image tokens as transformers' processor has them, bytes as they came."""

from __future__ import annotations

import io
import json
import os
import shlex
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import BREAK, END, IMG, PROCESSOR, asked, data_url, encoded, write_rows
from PIL import Image
from pyarrow import Table, parquet

from nld_train.commands.data import main
from nld_train.config.compose import compose_config
from nld_train.config.schema import VisionConfig
from nld_train.data.chat.default import default_template
from nld_train.data.chat_set import ChatSet
from nld_train.data.manifest import read_manifest
from nld_train.data.pictures.check import check_against_vision
from nld_train.data.pictures.decode import PictureLimits, decode_picture
from nld_train.data.pictures.processor import PictureProcessor, picture_processor
from nld_train.data.shards import _ShardWriter
from nld_train.errors import UserError

FIRST, SECOND = encoded(40, 61, 1), encoded(28, 20, 2, "JPEG")


def run(*arguments: str | Path) -> int:
    return main(["prepare", "--chat", "--pictures", "--picture-processor", PROCESSOR, *map(str, arguments)])


def naive_tokens(height: int, width: int) -> list[int]:
    rows = [[IMG] * (width // 14) + [BREAK] for _ in range(height // 14)]
    rows[-1][-1] = END
    return [token for row in rows for token in row]


def documents(prefix: str | Path) -> list[tuple[list[int], list[bool], list[tuple[int, int, int, bytes]]]]:
    """Tokens, answers and pictures of each conversation."""
    chat, found = ChatSet(str(prefix)), []
    for number in range(chat.documents):
        span = chat.span(number)
        tokens, answers = chat.read(*span)
        pictures = [(each.begin, each.height, each.width, each.data) for each in chat.pictures(*span)]
        found.append((tokens.tolist(), answers.tolist(), pictures))
    return found


def text(words: str) -> list[int]:
    return [byte + 4 for byte in words.encode()]


def rows_of(folder: Path) -> list[Any]:
    (folder / "a.png").write_bytes(FIRST)
    (folder / "b.jpg").write_bytes(SECOND)
    return [
        {"messages": asked(("a.png",), "what [IMG]?") + asked("and ", (data_url(SECOND),))},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]},
        {"messages": asked("x", (str(folder / "b.jpg"),), ("a.png",))},
    ]


def test_image_tokens_stand_where_the_pictures_do(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", rows_of(tmp_path))
    assert run(source, "--out", tmp_path / "out", "--name", "set") == 0
    first, second, third = documents(tmp_path / "out/set")
    large, small = naive_tokens(56, 42), naive_tokens(28, 28)
    question = [*text("U"), 1, *large, *text("what [IMG]?"), 2, *text("A"), 1]
    again = [*text("U"), 1, *text("and "), *small, 2, *text("A"), 1]
    answer = [*text("yes"), 2]
    assert first[0] == question + answer + again + answer
    assert first[1] == [False] * len(question) + [True] * 4 + [False] * len(again) + [True] * 4
    assert first[2] == [(2, 56, 42, FIRST), (len(question) + 4 + 6, 28, 28, SECOND)]
    assert second[2] == []
    assert [each[1:] for each in third[2]] == [(28, 28, SECOND), (56, 42, FIRST)]
    manifest = read_manifest(str(tmp_path / "out/set"))
    assert manifest is not None
    assert manifest.pictures is not None
    # Stored once, however often and by whatever name they come.
    assert (manifest.pictures.pictures, manifest.pictures.occurrences) == (2, 4)
    assert (tmp_path / "out/set.pictures.bin").read_bytes() == FIRST + SECOND
    assert picture_processor(str(tmp_path / "out/tokenizer")) == picture_processor(
        json.dumps(manifest.pictures.processor)
    )
    turns = np.flatnonzero(np.unpackbits(np.fromfile(tmp_path / "out/set.turns.bin", np.uint8), bitorder="little"))
    assert turns.tolist() == [0, len(question) + 4]


def test_the_same_set_for_any_workers_and_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"messages": asked((data_url(encoded(14 + each % 5, 30, each % 7)),), f"q {each}")} for each in range(40)]
    source = write_rows(tmp_path / "in.jsonl", rows)
    settings = ("--name", "set", "--validation", "0.3", "--shard-megabytes", "0.004")
    assert run(source, "--out", tmp_path / "one", *settings, "--workers", 1) == 0
    whole = _ShardWriter.__call__

    def interrupted(self: _ShardWriter, shard: Any, advance: Any) -> None:
        if shard[0] == 3:
            raise KeyboardInterrupt
        whole(self, shard, advance)

    monkeypatch.setattr(_ShardWriter, "__call__", interrupted)
    run(source, "--out", tmp_path / "two", *settings, "--workers", 1)
    assert not (tmp_path / "two/set-train.idx").exists()
    monkeypatch.setattr(_ShardWriter, "__call__", whole)
    assert run(source, "--out", tmp_path / "two", *settings, "--workers", 1) == 0
    names = sorted(path.name for path in (tmp_path / "one").glob("set-*"))
    assert len(names) == 2 * 10
    for name in names:
        if not name.endswith("manifest.json"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    sides = [
        {each[3] for row in documents(tmp_path / f"one/set-{side}") for each in row[2]}
        for side in ("train", "validation")
    ]
    assert all(sides)
    assert not sides[0] & sides[1]  # no held-out picture was seen


@pytest.mark.parametrize("kind", ["parquet", "dataset", "llava", "finevision", "transformers"])
def test_pictures_of_rows(kind: str, tmp_path: Path) -> None:
    """Columns of pictures, and the formats that name them."""
    (tmp_path / "a.png").write_bytes(FIRST)
    messages = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]
    if kind == "parquet":
        table = Table.from_pylist([{"messages": messages, "images": [{"bytes": FIRST, "path": None}]}])
        parquet.write_table(table, tmp_path / "in.parquet")
        source = tmp_path / "in.parquet"
    elif kind == "dataset":
        import datasets

        word = datasets.Value("string")
        features = {
            "messages": [{"role": word, "content": [{"type": word, "text": word}]}],
            "images": datasets.List(datasets.Image()),
        }
        row = {"messages": messages, "images": [str(tmp_path / "a.png")]}
        datasets.Dataset.from_list([row], features=datasets.Features(features)).save_to_disk(str(tmp_path / "in"))
        source = tmp_path / "in"
    else:
        turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "yes"}]
        of_parts = [{"role": "user", "content": [{"type": "image", "path": "a.png"}, "what?"]}, messages[1]]
        row = {
            "llava": {"image": "a.png", "conversations": turns},
            "finevision": {"images": ["a.png"], "texts": [{"user": "what?", "assistant": "yes"}]},
            "transformers": {"messages": of_parts},
        }[kind]
        source = write_rows(tmp_path / "in.jsonl", [row])
    assert run(source, "--out", tmp_path / "out", "--name", "set") == 0
    ((tokens, _, pictures),) = documents(tmp_path / "out/set")
    assert tokens == [*text("U"), 1, *naive_tokens(56, 42), *text("what?"), 2, *text("A"), 1, *text("yes"), 2]
    assert pictures == [(2, 56, 42, FIRST)]


def test_sizes_and_pixels_are_those_of_transformers() -> None:
    """Against its processor's own batch: upright, in RGB, resized, normalised."""
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    processor = PictureProcessor(7, 2, 56)
    reference = PixtralImageProcessorPil(patch_size=7, size={"longest_edge": 56})
    for number, size in enumerate([(40, 61), (14, 14), (13, 200), (300, 57), (1, 1)]):
        image = decode_picture(encoded(*size, number), PictureLimits(), "x")
        found = processor.pixel_values(image)
        assert found.shape[1:] == processor.resized(image.height, image.width, "x")
        expected = reference(image, patch_size=14, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(found, expected)


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (56, 28)).save(stream, "JPEG", exif=exif)
    source = write_rows(tmp_path / "in.jsonl", [{"messages": asked((data_url(stream.getvalue()),))}])
    assert run(source, "--out", tmp_path / "out", "--name", "set") == 0
    assert documents(tmp_path / "out/set")[0][2][0][1:3] == (56, 28)


def bomb() -> bytes:
    """A picture of 400 million pixels in some kilobytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    header = (20_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


BAD: dict[str, tuple[Any, str]] = {
    "missing": (asked(("no.png",)), "message 1 (user): the picture '{folder}/no.png' cannot be read: No such file"),
    "none": (asked((data_url(b"no picture"),)), "message 1 (user): is no picture of a known format (PNG, JPEG"),
    "broken": (asked((data_url(FIRST[: len(FIRST) // 2]),)), "message 1 (user): the picture is broken: "),
    "bomb": (asked((data_url(bomb()),)), "message 1 (user): "),
    "remote": (asked(("https://a/b.png",)), "message 1 (user): the picture 'https://a/b.png' is elsewhere on the ne"),
    "pipe": (asked(("pipe",)), "message 1 (user): {folder}/pipe: is no regular file"),
    "narrow": (asked((data_url(encoded(2000, 1)),)), "message 1 (user): of the picture's 2000 x 1 pixels"),
    "base64": (asked(("data:image/png;base64,a*b",)), "message 1 (user): the base64 of a picture is broken"),
    "row": ([*asked("x"), {"role": "user", "content": [{"type": "image"}]}], "the row has 0 pictures under 'images"),
    "answer": (
        [*asked("x"), {"role": "assistant", "content": [{"type": "image", "path": "a.png"}]}],
        "message 3 (assistant): holds a picture; the model writes text only",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_one_line_with_the_row(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.png").write_bytes(FIRST)
    messages, message = BAD[name]
    source = write_rows(tmp_path / "in.jsonl", [{"messages": asked("hi")}, {"messages": messages}])
    assert run(source, "--out", tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"{source}, line 2: {message.format(folder=tmp_path)}" in lines[0]
    assert not list((tmp_path / "out").glob("*.bin"))
    assert run(source, "--out", tmp_path / "out", "--leave-out-bad-rows") == 0
    manifest = read_manifest(str(tmp_path / "out/in"))
    assert manifest is not None
    assert manifest.chat is not None
    assert (manifest.documents, manifest.chat.bad_rows) == (1, 1)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (("--picture-megabytes", "0.001"), "MiB, more than 0.001 (--picture-megabytes)"),
        (("--picture-megapixels", "0.001"), "the picture has 40 x 61 pixels, more than 0.001 million (--picture-megap"),
        (("--picture-seconds", "1e-6"), "decoding takes more than 1e-06 s (--picture-seconds)"),
    ],
)
def test_limits(limit: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(FIRST)
    source = write_rows(tmp_path / "in.jsonl", [{"messages": asked(("a.png",))}])
    assert run(source, "--out", tmp_path / "out", *limit) == 2
    assert message in capsys.readouterr().err


def test_a_template_without_places_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(FIRST)
    blind = default_template().replace("message.content", "message.content[1].text")
    (tmp_path / "template").write_text(blind.replace("{{- message.content[1].text -}}", "{{- message.content -}}"))
    source = write_rows(tmp_path / "in.jsonl", [{"messages": asked(("a.png",), "what?")}])
    assert run(source, "--out", tmp_path / "out", "--chat-template", tmp_path / "template") == 2
    assert "line 1: the chat template writes [IMG] 0 times for 1 pictures" in capsys.readouterr().err


def test_pictures_have_to_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(FIRST)
    source = write_rows(tmp_path / "in.jsonl", [{"messages": asked(("a.png",))}])
    assert main(["prepare", "--chat", str(source), "--out", str(tmp_path / "out")]) == 2
    assert "line 1: message 1 (user): holds a picture: give --pictures" in capsys.readouterr().err
    assert main(["prepare", "--pictures", str(source), "--out", str(tmp_path / "out")]) == 2
    assert main(["prepare", "--chat", str(source), "--picture-seconds", "1", "--out", str(tmp_path / "out")]) == 2


def test_a_set_and_a_model_have_the_same_patches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vision = VisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=7, image_size=56,
        spatial_merge_size=2, hidden_act="silu", rope_theta=10000.0, projector_hidden_act="gelu",
        multimodal_projector_bias=False, image_token_id=IMG, image_break_token_id=BREAK, image_end_token_id=END,
    )  # fmt: skip
    (tmp_path / "a.png").write_bytes(FIRST)
    source = write_rows(tmp_path / "in.jsonl", [{"messages": asked(("a.png",))}])
    assert run(source, "--out", tmp_path / "out", "--name", "set", "--validation", "0") == 0
    prefix = str(tmp_path / "out/set")
    check_against_vision(prefix, vision)
    words = shlex.split(capsys.readouterr().out.rpartition("use in a run: nld-train ")[2])
    check_against_vision(prefix, compose_config(words).model.vision)
    for changed, message in [
        (None, "has 1 pictures, and the model has no vision tower"),
        (replace(vision, patch_size=14), "model.vision.patch_size=14: .* was prepared with 7"),
        (replace(vision, image_end_token_id=5), "model.vision.image_end_token_id=5: .* was prepared with 262"),
        (replace(vision, image_size=42), "model.vision.image_size=42: .* up to 56 pixels"),
    ]:
        with pytest.raises(UserError, match=message):
            check_against_vision(prefix, changed)
    path = tmp_path / "out/set.pictures.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"set\.pictures\.bin is damaged"):
        check_against_vision(prefix, vision)
