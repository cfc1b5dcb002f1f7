"""Exports served by `transformers serve`, and asked over loopback by the client of OpenAI."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from forked import Forked, free_port
from instruct_runs import QUESTIONS
from vision_models import encoded, require_torchvision, vision_folder

from checkpoint_convert.hf_package.serve import MODES, main
from nld_train.decoding.algorithms.options import Mode

REASON = "the extra `serving` is not installed"
TOKENS = 16
PNG = base64.b64encode(encoded(37, 21, seed=1)).decode()
MESSAGES = [{"role": "user", "content": QUESTIONS[2]}]


@contextmanager
def served(folder: Path, port: int, *words: str) -> Iterator[Any]:
    """A client of a server that was started by a command."""
    openai = pytest.importorskip("openai", reason=REASON)
    for name in ("fastapi", "uvicorn"):
        pytest.importorskip(name, reason=REASON)
    log = folder / f"{port}.log"
    with log.open("w") as output:
        server = Forked([*words, "--port", str(port), "--host", "127.0.0.1", "--device", "cpu"], output)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert server.poll(0.1) is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            # The model is loaded before the server listens.
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
        yield client
    finally:
        server.kill_group()


@pytest.fixture(scope="module")
def client(instruct: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of an export that is served by the command in it, by diffusion where a request names no mode."""
    script = str(instruct["nld"] / "serve.py")
    with served(tmp_path_factory.mktemp("served"), free_port(), script, "--decoding-mode", "diffusion") as found:
        yield found


@pytest.fixture(scope="module")
def expected(instruct: dict[str, Path]) -> dict[str, str]:
    """The answer by `generate`, in each mode."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(instruct["nld"], trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(instruct["nld"], trust_remote_code=True)
    form = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    batch = tokenizer.apply_chat_template(MESSAGES, **form)
    return answers(model, batch, tokenizer)


def answers(model: Any, batch: Any, decoder: Any) -> dict[str, str]:
    """By `generate`, in each mode; `decoder` is a tokenizer or a processor."""
    found = {}
    for mode in MODES:
        ids = model.generate(**batch, max_new_tokens=TOKENS, decoding_mode=mode, do_sample=False)
        found[mode] = decoder.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def asked(directory: Path, **changes: Any) -> dict[str, Any]:
    config = {"max_new_tokens": TOKENS, "do_sample": False, **changes}
    body = {"generation_config": json.dumps(config)}
    return {"model": str(directory), "messages": MESSAGES, "extra_body": body}


def test_the_command_knows_every_mode() -> None:
    assert get_args(Mode) == MODES


def test_the_command_refuses_continuous_batching(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--continuous-batching"])
    assert ended.value.code == 2
    assert "--continuous-batching: this model has no paged attention" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_a_chat_in_every_mode(client: Any, instruct: dict[str, Path], expected: dict[str, str], mode: str) -> None:
    """The text is that of `generate`; streamed, it comes in pieces."""
    request = asked(instruct["nld"], decoding_mode=mode)
    assert client.chat.completions.create(**request).choices[0].message.content == expected[mode]
    chunks = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**request, stream=True)]
    assert "".join(chunks) == expected[mode]
    assert len([chunk for chunk in chunks if chunk]) > 1


@pytest.mark.long
def test_the_servers_mode_decides_where_a_request_names_none(
    client: Any, instruct: dict[str, Path], expected: dict[str, str]
) -> None:
    """Only AR has a frequency penalty; what a mode lacks is an error of the request that names it."""
    import openai

    refused = "RepetitionPenaltyLogitsProcessor: .* are not in decoding_mode 'diffusion'"
    short = {"model": str(instruct["nld"]), "messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0}
    for request in (short, asked(instruct["nld"])):
        answer = client.chat.completions.create(**request)
        assert answer.choices[0].message.content == expected["diffusion"]
        assert answer.usage.completion_tokens <= TOKENS
        with pytest.raises(openai.BadRequestError) as whole:
            client.chat.completions.create(**request, frequency_penalty=0.5)
        assert re.match(refused, whole.value.response.json()["detail"])
        with pytest.raises(openai.APIError) as streamed:
            list(client.chat.completions.create(**request, frequency_penalty=0.5, stream=True))
        assert re.search(refused, str(streamed.value.body))
    client.chat.completions.create(**asked(instruct["nld"], decoding_mode="ar"), frequency_penalty=0.5)


@pytest.mark.long
def test_the_plain_export_needs_no_command_of_its_own(
    instruct: dict[str, Path], expected: dict[str, str], tmp_path: Path
) -> None:
    words = ("-m", "transformers.cli.transformers", "serve", str(instruct["ministral3"]))
    with served(tmp_path, free_port(), *words) as client:
        answer = client.chat.completions.create(**asked(instruct["ministral3"]))
    assert answer.choices[0].message.content == expected["ar"]


def about(picture: str) -> list[dict[str, Any]]:
    """A question about a picture, as clients of OpenAI ask it."""
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


def answers_about(directory: Path) -> dict[str, str]:
    """By `generate`, in each mode, of what the processor makes of the question."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(directory)
    model = AutoModelForImageTextToText.from_pretrained(directory, trust_remote_code=True)
    messages = about(PNG)
    messages[0]["content"][0] = {"type": "image", "url": f"data:image/png;base64,{PNG}"}
    form = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    batch = processor.apply_chat_template(messages, **form)
    return answers(model, batch, processor)


@pytest.mark.long
def test_a_question_about_a_picture_in_every_mode(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """A picture in the request, whole and streamed; what cannot be read is an error of the request."""
    import openai

    require_torchvision()
    directory = vision_folder(tmp_path_factory) / "exported"
    expected = answers_about(directory)
    assert expected["ar"] == expected["linear"] == expected["quadratic"] != expected["diffusion"]
    with served(tmp_path, free_port(), str(directory / "serve.py"), "--decoding-mode", "linear") as client:
        for mode in (None, *MODES):
            request = asked(directory, **({} if mode is None else {"decoding_mode": mode})) | {"messages": about(PNG)}
            whole = client.chat.completions.create(**request)
            assert whole.choices[0].message.content == expected[mode or "linear"]
            pieces = client.chat.completions.create(**request, stream=True)
            streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
            # A character that is not whole yet is not streamed.
            assert streamed.rstrip("\ufffd") == expected[mode or "linear"].rstrip("\ufffd") != ""
        letter = next(filter(str.isalnum, expected["quadratic"][1:]))
        stopped = client.chat.completions.create(**request, stop=[letter])
        assert stopped.choices[0].message.content == expected["quadratic"].partition(letter)[0] + letter
        assert client.chat.completions.create(**asked(directory)).choices[0].message.content
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**request | {"messages": about("AAAA")})
        detail = refused.value.response.json()["detail"]
        assert detail.startswith("messages: cannot be read with their pictures: ")
        assert "\n" not in detail


def test_an_export_that_sees_is_not_served_without_torchvision(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it is installed for another torch, and does not load."""
    for name in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(name, reason=REASON)
    script = vision_folder(tmp_path_factory) / "exported" / "serve.py"
    spec = importlib.util.spec_from_file_location("serve_of_export", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(SystemExit) as ended:
        module.main([])
    assert ended.value.code == 2
    assert "torchvision, which the processor of pictures needs, does not load" in capsys.readouterr().err
