"""The commands with pictures: `nld-decode`, its chat, `nld-exact` and `nld-eval`, on a checkpoint and on an export."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_helpers import refusal
from PIL import Image
from vision_models import encoded, vision_folder

from nld_train.commands.decode import main as decode
from nld_train.commands.eval import main as evaluate
from nld_train.commands.exact import main as exact
from nld_train.data.tokenizer import load_tokenizer

TASKS = Path(__file__).with_name("harness_tasks")
LIMITS = ("--max-new-tokens", 12)
Record = dict[str, Any]


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision_folder(tmp_path_factory)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of several sizes, and of another content."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, size in {"wide": (30, 11), "large": (90, 40), "tall": (9, 25)}.items():
        (folder / f"{name}.png").write_bytes(encoded(*size, seed=1))
    (folder / "other.png").write_bytes(encoded(30, 11, seed=2))
    (folder / "text.png").write_text("no picture")
    Image.new("1", (9000, 8000)).save(folder / "huge.png")
    return folder


def words(*given: object) -> list[str]:
    return list(map(str, given))


@pytest.fixture
def decoded(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[Record]]:
    """The records that a command line of `nld-decode` prints."""

    def run(*given: object) -> list[Record]:
        capsys.readouterr()
        assert decode(words(*given, "--json", *LIMITS)) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def texts(records: list[Record]) -> list[list[int]]:
    return [record["token_ids"] for record in records]


def rows(path: Path, *conversations: list[Any], **others: Any) -> Path:
    """A conversation of one message on each line; parts that are paths or URLs are pictures."""
    lines = []
    for parts in conversations:
        texts = ({"type": "text", "text": part} for part in parts)
        pictures = ({"type": "image_url", "image_url": {"url": part[0]}} for part in parts)
        triples = zip(parts, texts, pictures, strict=True)
        content = [text if isinstance(part, str) else picture for part, text, picture in triples]
        lines.append(json.dumps({"messages": [{"role": "user", "content": content}], **others}))
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.mark.parametrize("kind", ["imported", "exported"])
def test_conversations_with_pictures(
    vision: Path, pictures: Path, tmp_path: Path, decoded: Callable[..., list[Record]], kind: str
) -> None:
    """In one batch as alone; a path from the file's folder, a data URL and `--image` are the same picture."""
    url = "data:image/png;base64," + base64.b64encode((pictures / "wide.png").read_bytes()).decode()
    conversations: list[list[Any]] = [
        [["wide.png"], "what?"],
        ["no picture?"],
        [[url], "what?"],
        [["other.png"], "what?"],
        ["a", ["large.png"], "b", ["tall.png"], "c"],
    ]
    file = rows(pictures / f"{kind}.jsonl", *conversations)
    found = texts(decoded(vision / kind, "--mode", "linear", "--block-length", 4, "--prompts", file))
    assert found == texts(decoded(vision / kind, "--mode", "ar", "--prompts", file, "--batch-size", 2))
    assert found[0] == found[2]
    assert len(set(map(tuple, found))) == 4
    given = (vision / kind, "--mode", "ar", "--chat")
    assert texts(decoded(*given, "--image", pictures / "wide.png", "--prompt", "what?")) == found[:1]
    assert texts(decoded(*given, "--prompt", "no picture?")) == found[1:2]
    several = ("--image", pictures / "large.png", "--image", pictures / "tall.png")
    assert texts(decoded(*given, *several, "--prompt", "a[IMG]b[IMG]c")) == found[4:]
    # Without a template: a document that begins with the picture.
    (plain,) = decoded(vision / kind, "--mode", "ar", "--image", pictures / "wide.png", "--prompt", "what?")
    (marked,) = decoded(vision / kind, "--mode", "ar", "--image", pictures / "wide.png", "--prompt", "[IMG]what?")
    assert plain["token_ids"] == marked["token_ids"] != found[0]
    assert plain["prompt"] == "[IMG]what?"


def test_a_checkpoint_and_its_export_say_the_same(
    vision: Path, pictures: Path, decoded: Callable[..., list[Record]]
) -> None:
    given = ("--mode", "ar", "--image", pictures / "large.png", "--prompt", "[IMG] is")
    assert texts(decoded(vision / "imported", *given)) == texts(decoded(vision / "exported", *given))


def test_a_chat_with_pictures(
    vision: Path,
    pictures: Path,
    decoded: Callable[..., list[Record]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def talk(lines: list[str], *more: object) -> list[Record]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
        return decoded(vision / "exported", "--chat", "--block-length", 4, *more)

    lines = ["what?", f"/image {pictures / 'tall.png'}", "and [IMG] this?", "/mode ar", "/again", "so"]
    first, second, third, fourth = talk(lines, "--image", pictures / "wide.png")
    (alone,) = decoded(
        vision / "exported", "--mode", "ar", "--chat", "--image", pictures / "wide.png", "--prompt", "what?"
    )
    assert first["token_ids"] == alone["token_ids"]
    assert (first["prompt"], second["prompt"], third["prompt"]) == ("[IMG]what?", "and [IMG] this?", "and [IMG] this?")
    assert second["token_ids"] == third["token_ids"]
    # Pictures that stand where they stood are in the cache, once it is large enough.
    assert first["prefill_tokens"] == first["prompt_tokens"] > 10
    assert third["prefill_tokens"] == 1
    assert fourth["prefill_tokens"] <= fourth["prompt_tokens"] - third["prompt_tokens"]


def test_exact_answers_about_pictures(
    vision: Path, pictures: Path, decoded: Callable[..., list[Record]], tmp_path: Path
) -> None:
    """The answer to a picture is the model's own, up to the stop: right there, and wrong of another picture."""
    given = ("--mode", "ar", "--chat", "--image", pictures / "wide.png", "--prompt", "what?")
    ids = decoded(vision / "exported", *given)[0]["token_ids"]
    end = next(index for index in range(3, len(ids)) if ids[index] not in ids[:index])
    stops = shutil.copytree(vision / "exported", tmp_path / "stops")
    generation = json.loads((stops / "generation_config.json").read_text())
    (stops / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": [2, ids[end]]}))
    (record,) = decoded(stops, *given)
    assert (record["finish"], record["token_ids"]) == ("stop", ids[: end + 1])
    answer = load_tokenizer(str(stops)).decode(ids[:end])
    lines = []
    for name in ("wide", "other"):
        content = [{"type": "image", "image": f"{name}.png"}, {"type": "text", "text": "what?"}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages, "kind": name}) + "\n")
    (pictures / "questions.jsonl").write_text("".join(lines))
    output = tmp_path / "found.json"
    given = ("--prompts", pictures / "questions.jsonl", "--modes", "ar", "linear", "--output", output, *LIMITS)
    assert exact(words(stops, *given)) == 0
    found = json.loads(output.read_text())
    assert [found[mode][kind]["exact"] for mode in ("ar", "linear") for kind in ("wide", "other")] == [1, 0, 1, 0]


@pytest.mark.parametrize("chat", [False, True])
def test_a_task_of_the_harness_that_shows_pictures(
    vision: Path, decoded: Callable[..., list[Record]], tmp_path: Path, chat: bool
) -> None:
    output = tmp_path / "results.json"
    given = ("--tasks", "local_pictures", "--include-path", TASKS, "--log-samples", "--output", output, *LIMITS)
    template = ("--apply-chat-template",) if chat else ()
    assert evaluate(words(vision / "exported", "--mode", "linear", "--block-length", 4, *given, *template)) == 0
    samples = sorted(json.loads(output.read_text())["samples"]["local_pictures"], key=lambda each: each["doc_id"])
    for sample, (width, height) in zip(samples, ((30, 11), (9, 25)), strict=True):
        picture = tmp_path / f"{width}.png"
        picture.write_bytes(encoded(width, height, seed=width))
        options = ("--chat",) if chat else ()
        (alone,) = decoded(
            vision / "exported", "--mode", "ar", *options, "--image", picture, "--prompt", "Look: [IMG] what?"
        )
        assert sample["resps"] == [[alone["text"]]]


MISTAKES = {
    "missing": ("--image", "nowhere.png", "--image nowhere.png: cannot be read (No such file or directory)"),
    "no picture": ("--image", "text.png", "is no picture of a known format"),
    # Named as it is where no option changes the limit.
    "huge": ("--image", "huge.png", "the picture has 9000 x 8000 pixels, more than 64 million\n"),
    "more": ("--image", "wide.png", "--image: 1 given, and the text has 2 placeholders ([IMG])"),
    "fewer": (None, None, "prompt 0 has 2 [IMG] tokens (id 260), and no picture"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_with_pictures(
    vision: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.chdir(pictures)
    option, file, message = MISTAKES[mistake]
    given = [] if option is None else [option, file]
    prompt = "[IMG] or [IMG]" if mistake in ("more", "fewer") else "x"
    assert message in refusal(capsys, decode, vision / "exported", "--mode", "ar", *given, "--prompt", prompt)


def test_pictures_where_they_have_no_place(
    vision: Path, trained_export: Path, pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    image = ("--image", pictures / "wide.png")
    given = ("--mode", "ar", "--prompt", "x", *image)
    assert "--image: holds a picture, and this model has no vision tower: it reads text alone" in refusal(
        capsys, decode, trained_export, *given
    )
    file = rows(tmp_path / "rows.jsonl", [["gone.png"], "what?"])
    error = refusal(capsys, decode, vision / "exported", "--mode", "ar", "--prompts", file)
    assert f"--prompts {file}:1: picture 1" in error
    assert "gone.png' cannot be read: No such file or directory" in error
    error = refusal(capsys, decode, vision / "exported", "--mode", "ar", "--prompts", file, *image)
    assert "--image: belongs to one --prompt or to a chat" in error
    long = (vision / "exported", "--mode", "ar", *image, *LIMITS, "--prompt", "x" * 254)
    assert "prompt 0 has 264 tokens, which leaves no room in the context of 256" in refusal(capsys, decode, *long)
    error = refusal(
        capsys, evaluate, trained_export, "--mode", "ar", "--tasks", "local_pictures", "--include-path", TASKS
    )
    assert "--tasks: local_pictures shows pictures, and" in error
