"""The processor of a vision-language export: its files, and what `AutoProcessor` makes of them with torchvision."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pictures import VISION
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from vision_models import IMAGE_TOKENS, IMG, encoded, require_torchvision, stock_answer, vision_folder

from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.hugging_face import HuggingFaceWeights
from checkpoint_convert.processor_files import write_processor
from nld_train.config.schema import VisionConfig
from nld_train.data.chat.prompt import ChatFormat
from nld_train.data.pictures.prompt import PromptPictures
from nld_train.data.tokenizer import load_tokenizer
from nld_train.decoding import DecodeOptions, Mode, Threshold, decode
from nld_train.decoding.load import find_source
from nld_train.errors import UserError
from nld_train.model.vision.picture_prompt import PicturePrompt, pictures_of

FORMATS = ("exported", "plain")
NEW = 8
# PIL and torchvision round a resized picture to different ones of 255 steps: one step, divided by the deviation.
ONE_STEP = 1.001 / 255 / 0.26130258
PNG = encoded(37, 21, seed=1)
MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`exported`, and the plain export."""
    found = vision_folder(tmp_path_factory)
    plain = tmp_path_factory.mktemp("plain") / "plain"
    export_checkpoint(found / "imported", plain, "ministral3", report=lambda _: None)
    return {"exported": found / "exported", "plain": plain}


def tower() -> VisionConfig:
    values: dict[str, Any] = VISION | {"multimodal_projector_bias": False}
    return VisionConfig(**values)


def files_of(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    names = ("processor_config.json", "preprocessor_config.json")
    whole, images = (json.loads((directory / name).read_text()) for name in names)
    return whole, images


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_has_what_the_processor_of_its_origin_leaves_out(folder: dict[str, Path], name: str) -> None:
    """The origin names an edge and a patch; by themselves transformers would merge no patches, and find no class."""
    whole, images = files_of(folder[name])
    assert (whole["processor_class"], whole["patch_size"], whole["spatial_merge_size"]) == ("PixtralProcessor", 4, 2)
    assert [whole[key] for key in ("image_token", "image_break_token", "image_end_token")] == list(IMAGE_TOKENS)
    assert images == whole["image_processor"]
    assert (images["size"], images["patch_size"]) == ({"longest_edge": 32}, {"height": 4, "width": 4})


def test_own_settings_of_an_origin_stay(tmp_path: Path) -> None:
    """Also those of a file that has the image processor alone; the edge without one is that of the commands."""
    origin, export = tmp_path / "origin", tmp_path / "export"
    export.mkdir()
    write_processor(export, tower(), None)
    assert files_of(export)[0]["image_processor"]["size"] == {"longest_edge": VISION["image_size"]}
    origin.mkdir()
    given = {"image_mean": [0.5, 0.5, 0.5], "image_processor_type": "PixtralImageProcessorFast", "patch_size": 4}
    (origin / "preprocessor_config.json").write_text(json.dumps(given))
    write_processor(export, tower(), origin)
    whole, images = files_of(export)
    assert images == whole["image_processor"]
    assert images["image_mean"] == given["image_mean"]
    assert (images["size"], whole["patch_size"]) == ({"longest_edge": 1540}, 4)
    (origin / "processor_config.json").write_text(json.dumps({"image_token": "<image>", "patch_size": 4}))
    write_processor(export, tower(), origin)
    assert files_of(export)[0]["image_token"] == "<image>"
    (origin / "preprocessor_config.json").write_text(json.dumps(given | {"image_processor_type": "CLIP"}))
    with pytest.raises(UserError, match="image_processor_type is CLIP"):
        write_processor(export, tower(), origin)


def own_prompt(directory: Path) -> PicturePrompt:
    """The messages with their picture as `nld-decode` reads them."""
    pictures = PromptPictures.of(HuggingFaceWeights(directory, vision=True).model.vision, [directory])
    chat = ChatFormat(load_tokenizer(str(directory)), pictures=pictures)
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, MESSAGES[0]["content"][1]]
    _, prompt = chat.prompt([{"role": "user", "content": content}], "the messages")
    assert isinstance(prompt, PicturePrompt)
    return prompt


def with_picture(picture: Image.Image) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, MESSAGES[0]["content"][1]]}]


@pytest.mark.parametrize("name", FORMATS)
def test_a_processor_gives_what_the_commands_read(folder: dict[str, Path], name: str) -> None:
    """Ids in both ways to write a prompt; the commands compute pixels with PIL, and this with torchvision."""
    require_torchvision()
    processor = AutoProcessor.from_pretrained(folder[name])
    assert type(processor).__name__ == "PixtralProcessor"
    picture, own = Image.open(io.BytesIO(PNG)), own_prompt(folder[name])
    form = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    chat = processor.apply_chat_template(with_picture(picture), **form)
    assert chat["input_ids"].tolist() == [list(own)]
    text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    plain = processor(text=[text], images=[picture], return_tensors="pt")
    assert plain["input_ids"].tolist() == [list(own)]
    pictures = pictures_of(own)
    for found in (chat, plain):
        assert torch.equal(found["image_sizes"], pictures.sizes)
        torch.testing.assert_close(found["pixel_values"], pictures.pixel_values, atol=ONE_STEP, rtol=0)
    assert (pictures.pixel_values - pictures.pixel_values.mean()).abs().max() > 50 * ONE_STEP


@pytest.mark.parametrize("name", FORMATS)
def test_the_answers_are_those_of_the_commands(folder: dict[str, Path], name: str) -> None:
    """The snippet of docs/vision.md in every mode, and the pipeline."""
    require_torchvision()
    own, trust = own_prompt(folder[name]), {"trust_remote_code": True} if name == "exported" else {}
    processor = AutoProcessor.from_pretrained(folder[name])
    model = AutoModelForImageTextToText.from_pretrained(folder[name], **trust).eval()
    picture = Image.open(io.BytesIO(PNG))
    text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    greedy = {"max_new_tokens": NEW, "do_sample": False}
    expected: dict[str, list[int]] = {}
    if name == "plain":
        found = model.generate(**inputs, **greedy)[0, len(own) :].tolist()
        assert found == stock_answer(model, own, NEW)
        expected["ar"] = found
    else:
        with find_source(folder[name]).open() as engine:
            options = DecodeOptions(NEW, block_length=4, stop_tokens=(2,))
            for mode in get_args(Mode):
                policy = Threshold(0.9) if mode == "diffusion" else None
                (expected[mode],) = decode(engine, [own], mode, options, policy).token_ids
                ids = model.generate(**inputs, **greedy, decoding_mode=mode, block_length=4)
                assert ids[0, len(own) :].tolist() == expected[mode], mode
    assert len(set(expected["ar"])) > 3, "an answer that tells"
    ask = pipeline("image-text-to-text", model=str(folder[name]), **trust)
    (answer,) = ask(text=with_picture(picture), return_full_text=False, generate_kwargs=greedy)
    assert answer["generated_text"] == processor.decode(expected["ar"], skip_special_tokens=True)
    assert IMG not in expected["ar"]
