"""`nld-data tasks --pictures`: answers read from the pictures themselves, no held-out scene in training, same bytes."""

from __future__ import annotations

import base64
import io
import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nld_train.commands.data import main
from nld_train.data.tasks.scenes import CELL, DIGITS, SHAPES, Scene, draw

Rows = list[dict[str, Any]]
ROWS, COLUMNS = "tmb", "lcr"


def written(folder: Path, *words: str) -> dict[str, Rows]:
    numbers = ("--conversations", "150", "--held-out", "15")
    assert main(["tasks", str(folder), "--pictures", *numbers, *words]) == 0
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}


def marks(cell: np.ndarray[Any, Any]) -> bytes:
    """What is drawn in a cell, wherever it stands in it."""
    lit = cell.max(axis=2) >= 100
    if not lit.any():
        return b""
    rows, columns = (np.flatnonzero(lit.any(axis=axis)) for axis in (1, 0))
    found = lit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return bytes(found.shape) + found.tobytes()


@cache
def known_marks() -> dict[bytes, str]:
    names = (*DIGITS, *SHAPES)
    pictures = {name: draw(Scene(1, 1, (name,)), Random(0)) for name in names}
    return {marks(np.asarray(Image.open(io.BytesIO(data)))): name for name, data in pictures.items()} | {b"": "."}


def seen(row: dict[str, Any]) -> dict[str, str]:
    """What is at each position of the picture of a row, read from its pixels, row by row."""
    url = row["messages"][0]["content"][0]["image_url"]["url"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))
    assert pixels.shape == (len(ROWS) * CELL, len(COLUMNS) * CELL, 3)
    known = known_marks()
    return {
        f"{ROWS[y]}{COLUMNS[x]}": known[marks(pixels[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL])]
        for y in range(len(ROWS))
        for x in range(len(COLUMNS))
    }


def question(row: dict[str, Any]) -> tuple[str, str]:
    user, assistant = row["messages"]
    return user["content"][1]["text"], assistant["content"]


def test_no_two_things_look_alike() -> None:
    assert len(known_marks()) == len(DIGITS) + len(SHAPES) + 1


def test_answers_are_right_and_scenes_apart(tmp_path: Path) -> None:
    files = written(tmp_path / "a")
    assert {name: len(rows) for name, rows in files.items()} == {"train": 150, "held-out": 60, "held-out-blank": 60}
    for row in files["train"] + files["held-out"]:
        cells, (asked, answer) = seen(row), question(row)
        things = list(cells.values())
        grid = [things[start : start + 3] for start in (0, 3, 6)]
        if row["kind"] == "read":
            assert (asked, answer) == ("read", " ".join(map("".join, grid)))
        elif row["kind"] == "which":
            assert answer == cells[asked.removeprefix("which ")]
        else:
            thing = asked.removeprefix("how many ").removeprefix("where ")
            *marked, found = answer.split(" ")
            assert "".join(marked) == "".join(each if each == thing else "." for each in things)
            if row["kind"] == "how_many":
                assert found == str(things.count(thing))
            else:
                assert [position for position, each in cells.items() if each == thing] == [found]
    scenes = [{tuple(seen(row).items()) for row in files[name]} for name in ("train", "held-out")]
    assert not scenes[0] & scenes[1]
    assert [question(row) for row in files["held-out-blank"]] == [question(row) for row in files["held-out"]]
    assert {thing for row in files["held-out-blank"] for thing in seen(row).values()} == {"."}
    assert written(tmp_path / "b") == files
    assert written(tmp_path / "c", "--seed", "1") != files


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kinds", "copy"], "--kinds: copy is no kind of question; with --pictures: read, which, how_many, where"),
        (["--documents", "5"], "--documents is of text: leave it out with --pictures"),
        (["--held-out", "0"], "--conversations and --held-out must be at least 1"),
    ],
)
def test_wrong_requests(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", str(tmp_path), "--pictures", *words]) == 2
    assert message in capsys.readouterr().err
