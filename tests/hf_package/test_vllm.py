"""Plain exports in vLLM, whose interpreter `NLD_VLLM_PYTHON` names: tokens and log-probabilities as in transformers."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vision_models
import vllm_models
from PIL import Image
from tolerance import approx_to_rounding, forward_additions
from transformers import AutoModelForCausalLM, AutoTokenizer, Mistral3ForConditionalGeneration

from nld_train.config.image_tokens import image_tokens

INTERPRETER = os.environ.get("NLD_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not Path(INTERPRETER).is_file(),
        reason="NLD_VLLM_PYTHON names no interpreter with vLLM; docs/hugging_face.md, 'vLLM', says how to install one",
    ),
]
WORKER = Path(__file__).with_name("vllm_worker.py")
LIMIT = 540  # seconds for all models; about 20 each on two busy cores
NEW, LENGTH = 40, 192
TEXTS = [("yarn", False), ("yarn", True), ("lengthened", False), ("plain", True)]
PICTURE = (16, 24)
MESSAGES = [[{"role": "user", "content": "one"}], [{"role": "user", "content": "two, and a longer question"}]]
# One is shorter than the original length of the rotary embedding, one passes it twice.
PROMPTS = [torch.randint(4, 260, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (7, 90)]
WITH_PICTURE, WITHOUT = [100, 101, vision_models.IMG, 102, 103], [90, 91, 92]


def picture(path: Path) -> Path:
    pixels = np.random.default_rng(5).integers(0, 256, (*PICTURE, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exports, each with its number as its name, and a picture."""
    found = tmp_path_factory.mktemp("vllm")
    for number, (rope, tied) in enumerate(TEXTS):
        vllm_models.write_text_model(found / str(number), rope, tied)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vision_models.TEXT, "head_dim", vllm_models.HEAD_DIM)
        vllm_models.write_vision_model(found / "vision")
    picture(found / "picture.png")
    return found


@pytest.fixture(scope="module")
def answered(folder: Path) -> dict[str, Any]:
    """What vLLM answers: per model, one entry for each prompt, or an error."""
    plain = {"prompts": PROMPTS, "pictures": [None, None], "messages": [], "new": NEW, "length": LENGTH, "settings": {}}
    cases = {str(n): {**plain, "directory": str(folder / str(n) / "plain")} for n in range(len(TEXTS))}
    cases["chat"] = {**cases["0"], "prompts": [], "pictures": [], "messages": MESSAGES}
    cases["nld"] = {**plain, "directory": str(folder / "0" / "nld"), "settings": {"trust_remote_code": True}}
    seen = {"prompts": [WITH_PICTURE, WITHOUT], "pictures": [str(folder / "picture.png"), None]}
    cases["vision"] = {**plain, **seen, "directory": str(folder / "vision" / "plain")}
    (folder / "request.json").write_text(json.dumps(list(cases.values())))
    words = [INTERPRETER, str(WORKER), str(folder / "request.json"), str(folder / "answers.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, cwd=folder, env=own_environment())
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(cases, json.loads((folder / "answers.json").read_text()), strict=True))


def own_environment() -> dict[str, str]:
    """Without this project's path: vLLM has an environment of its own."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@torch.no_grad()
def assert_stock(model: Any, found: Any, prompt: list[int], more: dict[str, Any] | None = None) -> None:
    """Each token that vLLM chose is the likeliest of the stock model, and has the same log-probability."""
    assert len(found["tokens"]) == NEW
    ids = torch.tensor([prompt + found["tokens"]])
    logits = model(ids, **(more or {})).logits[0, len(prompt) - 1 : -1]
    additions = forward_additions(vllm_models.SHAPE, ids.shape[1])
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(found["tokens"])[:, None])[:, 0].tolist()
    scale = float(logits.abs().max())
    assert found["logprobs"] == approx_to_rounding(chosen, additions, scale=scale)
    assert logits.argmax(-1).tolist() == found["tokens"]
    assert len(set(found["tokens"])) > 5


@pytest.mark.parametrize("number", range(len(TEXTS)), ids=[f"{rope}-{tied}" for rope, tied in TEXTS])
def test_texts(number: int, folder: Path, answered: dict[str, Any]) -> None:
    found = answered[str(number)]
    assert "error" not in found, found
    stock = AutoModelForCausalLM.from_pretrained(folder / str(number) / "plain").eval()
    ours = AutoModelForCausalLM.from_pretrained(folder / str(number) / "nld", trust_remote_code=True)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        assert_stock(stock, answer, prompt)
        out, _ = ours.ar_generate(torch.tensor([prompt]), max_new_tokens=NEW, eos_token_id=())
        assert out[0, len(prompt) :].tolist() == answer["tokens"]


def test_the_chat_template(folder: Path, answered: dict[str, Any]) -> None:
    found = answered["chat"]
    assert "error" not in found, found
    tokenizer = AutoTokenizer.from_pretrained(folder / "0" / "plain")
    stock = AutoModelForCausalLM.from_pretrained(folder / "0" / "plain").eval()
    for messages, answer in zip(MESSAGES, found, strict=True):
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert answer["prompt"] == prompt
        assert_stock(stock, answer, prompt)
        # Random bytes: the last ones may be the beginning of a character, which vLLM holds back.
        text = tokenizer.decode(answer["tokens"], skip_special_tokens=True)
        assert answer["text"].rstrip("\ufffd") == text.rstrip("\ufffd")


def test_pictures(folder: Path, answered: dict[str, Any]) -> None:
    found = answered["vision"]
    if "error" in found and "torchvision" in found["error"]:
        pytest.skip(f"vLLM's environment cannot prepare pictures: {found['error']}")
    assert "error" not in found, found
    config = json.loads((folder / "vision" / "plain" / "processor_config.json").read_text())["image_processor"]
    pixels = np.asarray(Image.open(io.BytesIO((folder / "picture.png").read_bytes())), np.float32) / 255
    pixels = (pixels - np.float32(config["image_mean"])) / np.float32(config["image_std"])
    seen = {"pixel_values": torch.tensor(pixels).permute(2, 0, 1)[None], "image_sizes": torch.tensor([PICTURE])}
    stock = Mistral3ForConditionalGeneration.from_pretrained(folder / "vision" / "plain").eval()
    at = WITH_PICTURE.index(vision_models.IMG)
    tokens = image_tokens(vllm_models.vision_config(folder / "vision" / "plain"), PICTURE)
    assert_stock(stock, found[0], WITH_PICTURE[:at] + tokens + WITH_PICTURE[at + 1 :], seen)
    assert_stock(stock, found[1], WITHOUT)


def test_our_own_class_is_refused_in_one_line(answered: dict[str, Any]) -> None:
    error = answered["nld"]["error"]
    assert "attn_implementation: 'vllm' cannot run this class; `python serve.py` in its directory" in error
    assert "\n" not in error
