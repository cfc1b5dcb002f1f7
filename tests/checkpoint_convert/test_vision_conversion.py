"""A Mistral3 wrapper in, a vision-language export out: tensors, logits with pictures, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_sources import TEXT
from pictures import VISION, drawn
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, Mistral3Config, Mistral3ForConditionalGeneration

from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.hugging_face import HuggingFaceWeights
from checkpoint_convert.importing import import_checkpoint
from checkpoint_convert.mapping import is_vision, part_shape, tensors
from checkpoint_convert.verify import verify
from nld_train.config.image_tokens import image_tokens
from nld_train.errors import UserError
from nld_train.model.vision.pictures import Pictures

TOWER = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")


def silent(_: str) -> None:
    pass


def save_wrapper(directory: Path, tied: bool, seed: int = 0) -> Mistral3ForConditionalGeneration:
    """A tiny multimodal model of `transformers`, in a directory, with biases in its projector."""
    config = Mistral3Config(
        text_config=TEXT,
        vision_config={"model_type": "pixtral", "hidden_act": "silu", **{name: VISION[name] for name in TOWER}},
        tie_word_embeddings=tied,
        multimodal_projector_bias=True,
        image_token_index=VISION["image_token_id"],
    )
    torch.manual_seed(seed)
    model = Mistral3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    model.save_pretrained(directory, max_shard_size="60KB")
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def converted(request: Any, tmp_path_factory: Any) -> tuple[Any, Path]:
    """The model, and a folder with `source`, `imported` and `exported`."""
    folder = tmp_path_factory.mktemp("vision")
    model = save_wrapper(folder / "source", request.param)
    import_checkpoint(folder / "source", folder / "imported", report=silent, vision=True)
    export_checkpoint(folder / "imported", folder / "exported", "nld", shard_bytes=50_000, report=silent)
    return model, folder


def test_the_export_has_every_tensor_of_the_wrapper_bit_for_bit(converted: tuple[Any, Path]) -> None:
    _, folder = converted
    source, exported = HuggingFaceWeights(folder / "source", vision=True), HuggingFaceWeights(folder / "exported")
    assert exported.model.vision == source.model.vision is not None
    named = list(tensors(source.model))
    assert sum(is_vision(each.name) for each in named) == 2 + 2 * 9 + 6
    for each in named:
        rows = part_shape(each.part, source.model)[0]
        assert torch.equal(source.rows(each.name, 0, rows), exported.rows(each.name, 0, rows)), each.name
    assert len(list((folder / "exported").glob("*.safetensors"))) > 2
    stored = [name for path in (folder / "exported").glob("*.safetensors") for name in load_file(path)]
    assert {name.split(".")[1] for name in stored if name.startswith("encoder.")} >= {
        "vision_tower",
        "multi_modal_projector",
        "layers",
    }
    # And back.
    import_checkpoint(folder / "exported", folder / "again", report=silent)
    assert verify(folder / "imported", folder / "again", tokens=None).agrees


def test_plain_transformers_loads_the_export_with_the_wrappers_logits(converted: tuple[Any, Path]) -> None:
    model, folder = converted
    vision = HuggingFaceWeights(folder / "exported").model.vision
    assert vision is not None
    config = json.loads((folder / "exported" / "config.json").read_text())
    assert config["model_type"] == "nemotron_labs_diffusion_vlm"
    assert config["architectures"] == ["NemotronLabsDiffusionVLMModel"]
    assert (folder / "exported" / "processor_config.json").is_file()
    assert "pipeline_tag: image-text-to-text" in (folder / "exported" / "README.md").read_text().splitlines()
    loaded = AutoModel.from_pretrained(folder / "exported", trust_remote_code=True).eval()
    pictures = Pictures.of([drawn((16, 24), 1), drawn((8, 40), 2)])
    texts = [
        [20, 21, *image_tokens(vision, (16, 24)), *range(30, 37)],
        [*range(40, 51), *image_tokens(vision, (8, 40))],
    ]
    tokens = torch.tensor(texts)
    seen = {"pixel_values": pictures.pixel_values, "image_sizes": pictures.sizes}
    with torch.no_grad():
        found, expected = loaded(tokens, **seen).logits, model(tokens, **seen).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        text = torch.tensor([list(range(30, 45))])
        torch.testing.assert_close(loaded(text).logits, model(text).logits, atol=1e-5, rtol=1e-5)
        greedy = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 0}
        alone = tokens[:1], {name: value[:1] for name, value in seen.items()}
        expected = model.generate(alone[0], **alone[1], **greedy)
        assert torch.equal(loaded.generate(alone[0], **alone[1], **greedy), expected)
        with pytest.raises(ValueError, match=r"11 \[IMG\] tokens, but 1 pictures need 6"):
            loaded(tokens, pixel_values=pictures.pixel_values[:1], image_sizes=pictures.sizes[:1])


def test_the_joint_loss_of_an_export_sees_pictures(
    converted: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the clean stream alone: with the embedding of `[IMG]` as features it is the loss of the text."""
    _, folder = converted
    model = AutoModel.from_pretrained(folder / "exported", trust_remote_code=True).eval()
    vision = HuggingFaceWeights(folder / "exported").model.vision
    assert vision is not None
    picture = image_tokens(vision, (16, 24))
    tokens = torch.tensor([[20, *picture, *range(30, 41)]])
    labels = torch.where(torch.arange(tokens.shape[1]) >= len(picture) + 4, tokens, -100)

    def outputs(pictures: Pictures | None) -> Any:
        seen = {} if pictures is None else {"pixel_values": pictures.pixel_values, "image_sizes": pictures.sizes}
        generator = torch.Generator().manual_seed(5)
        return model(tokens, labels=labels, block_length=4, generator=generator, **seen)

    one, other = (Pictures.of([drawn((16, 24), seed)]) for seed in (1, 2))
    found = outputs(one)
    causal = model(tokens, pixel_values=one.pixel_values, image_sizes=one.sizes).logits
    torch.testing.assert_close(found.logits, causal, atol=1e-5, rtol=1e-5)
    assert found.loss != outputs(other).loss
    found.loss.backward()
    tower = [weight.grad for name, weight in model.named_parameters() if "vision_tower" in name]
    assert all(gradient is not None and bool(gradient.any()) for gradient in tower)
    image = torch.full((int((tokens == vision.image_token_id).sum()),), vision.image_token_id)
    monkeypatch.setattr(model.encoder, "picture_features", lambda *_: model.encoder.embed_tokens(image))
    assert torch.equal(outputs(one).loss, outputs(None).loss)
    with pytest.raises(ValueError, match=r"labels: \[IMG\] tokens are neither predicted nor masked"):
        model(tokens, labels=tokens, pixel_values=one.pixel_values, image_sizes=one.sizes)


def test_the_plain_export_is_the_wrapper_again(converted: tuple[Any, Path], tmp_path: Path) -> None:
    """Loaded without code of ours: every tensor and the logits of a picture; its head is left out where it was tied."""
    model, folder = converted
    plain = tmp_path / "plain"
    export_checkpoint(folder / "imported", plain, "ministral3", shard_bytes=50_000, report=silent)
    config = json.loads((plain / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["Mistral3ForConditionalGeneration"], "mistral3")
    assert (plain / "processor_config.json").is_file()
    assert "AutoModelForImageTextToText" in (plain / "README.md").read_text()
    loaded = AutoModelForImageTextToText.from_pretrained(plain).eval()
    assert isinstance(loaded, Mistral3ForConditionalGeneration)
    assert loaded.config.tie_word_embeddings == model.config.tie_word_embeddings
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    vision = HuggingFaceWeights(plain, vision=True).model.vision
    assert vision is not None
    tokens = torch.tensor([[20, *image_tokens(vision, (16, 24)), *range(30, 37)]])
    seen = Pictures.of([drawn((16, 24), 1)])
    with torch.no_grad():
        logits = [
            each(tokens, pixel_values=seen.pixel_values, image_sizes=seen.sizes).logits for each in (loaded, model)
        ]
    assert torch.equal(*logits)
    assert verify(folder / "exported", plain).agrees


def test_verify_compares_the_tower_and_a_drawn_picture(converted: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = converted
    for first, second in (("source", "imported"), ("imported", "exported")):
        found = verify(folder / first, folder / second)
        assert found.agrees
        assert [row.name for row in found.logits][-1] == "logits, a drawn picture"
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in (folder / "exported").iterdir():
        (changed / path.name).symlink_to(path)
    name = "encoder.vision_tower.transformer.layers.1.attention.q_proj.weight"
    (shard,) = [path for path in changed.glob("*.safetensors") if name in load_file(path)]
    contents = load_file(shard)
    shard.unlink()
    save_file({**contents, name: contents[name] + 0.5}, shard)
    found = verify(folder / "imported", changed)
    assert [row.name for row in found.tensors if not row.agrees] == [name.removeprefix("encoder.")]
    assert [row.name for row in found.logits if not row.agrees] == ["logits, a drawn picture"]


def test_what_is_refused(converted: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = converted
    import_checkpoint(folder / "source", tmp_path / "text", report=silent)
    with pytest.raises(UserError, match="has a vision tower, and the other is a text model"):
        verify(tmp_path / "text", folder / "imported")
    export_checkpoint(tmp_path / "text", tmp_path / "text-export", "nld", report=silent)
    with pytest.raises(UserError, match="has no vision_config: it is a text model"):
        import_checkpoint(tmp_path / "text-export", tmp_path / "none", report=silent, vision=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_layer": -2}, "vision_feature_layer=-2 is not supported"),
        ({"image_token_index": 900}, "image_token_index 900 is not an id"),
        ({"spatial_merge_size": 0}, "spatial_merge_size must be an integer above 0"),
        ({"vision_config": {"model_type": "siglip"}}, "vision_config.model_type"),
        ({"vision_config": {"patch_size": 5}}, "patch_conv.weight has shape"),
    ],
)
def test_a_tower_that_cannot_be_imported(
    converted: tuple[Any, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    _, folder = converted
    for path in (folder / "source").iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        HuggingFaceWeights(tmp_path, vision=True)
