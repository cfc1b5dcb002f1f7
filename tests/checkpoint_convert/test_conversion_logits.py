"""What is computed: Megatron on the import, `transformers` on the source, and on the export, all alike."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from converted_models import causal_logits, config_of, load_model, save_model
from hugging_face_sources import SOURCES, TEXT, Source, named, read_tensors, write_source
from test_conversion_round_trip import assert_same_bits, expected_tensors
from tolerance import assert_close_to_rounding, forward_additions
from torch import Tensor
from transformers import Ministral3Config, Ministral3ForCausalLM, Mistral3ForConditionalGeneration

from checkpoint_convert.checkpoints import open_weights
from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from checkpoint_convert.importing import import_checkpoint
from checkpoint_convert.logits import logit_blocks
from nld_train.model.rotary import inverse_frequencies

pytestmark = pytest.mark.usefixtures("groups")
# The original length of the rotary embedding is 16: three quarters of the positions are beyond it.
TOKENS = torch.randint(4, 66, (1, 64), generator=torch.Generator().manual_seed(5))
ADDITIONS = forward_additions(TEXT, 64)
ROPES = {
    "yarn": TEXT["rope_parameters"],
    "released": {**TEXT["rope_parameters"], "factor": 16.0, "mscale_all_dim": 1.0},
    "released factor 0.25": {**TEXT["rope_parameters"], "factor": 0.25, "mscale_all_dim": 1.0},
    "plain": {
        "rope_type": "default",
        "rope_theta": 777.0,
        "llama_4_scaling_beta": 0.0,
        "original_max_position_embeddings": 256,
    },
}


@torch.no_grad()
def transformers_logits(directory: Path, model_class: Any = Ministral3ForCausalLM) -> Tensor:
    model, info = model_class.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()(TOKENS).logits[0]


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("tied", [False, True])
def test_logits_agree_on_source_import_and_export(rope: str, tied: bool, tmp_path: Path) -> None:
    text = copy.deepcopy(TEXT) | {"rope_parameters": ROPES[rope]}
    source = Source("logits", dtype=torch.float32, tied=tied)
    write_source(tmp_path / "source", source, text)
    (config_path := tmp_path / "source" / "config.json").write_text(
        config_path.read_text().replace(
            '"architectures"', f'"tie_word_embeddings": {str(tied).lower()}, "architectures"'
        )
    )
    oracle = transformers_logits(tmp_path / "source")
    assert oracle.std() > 0.3

    import_checkpoint(tmp_path / "source", tmp_path / "imported")
    config = config_of(tmp_path / "imported")
    (model,) = load_model(config, tmp_path / "imported")
    assert_close_to_rounding(causal_logits(config, model, TOKENS), oracle, ADDITIONS)

    export_checkpoint(tmp_path / "imported", tmp_path / "out", "ministral3")
    assert torch.equal(transformers_logits(tmp_path / "out"), oracle)
    export_checkpoint(tmp_path / "imported", tmp_path / "nld", "nld")
    found = transformers_logits(tmp_path / "nld", NemotronLabsDiffusionModel)
    assert_close_to_rounding(found, oracle, ADDITIONS)


@pytest.mark.parametrize("rope", ROPES)
def test_servers_read_the_same_rotary_embedding(rope: str, tmp_path: Path) -> None:
    """The keys of vLLM and SGLang agree with those of `transformers`; and our own import reads them."""
    write_source(tmp_path / "source", named("fp32"), copy.deepcopy(TEXT) | {"rope_parameters": ROPES[rope]})
    import_checkpoint(tmp_path / "source", tmp_path / "imported")
    said: list[str] = []
    export_checkpoint(tmp_path / "imported", tmp_path / "out", "ministral3", report=said.append)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    given, model = ROPES[rope], open_weights(tmp_path / "imported").model
    # Of yarn vLLM computes the paper's factor on cosines and sines, unless `apply_yarn_scaling` is false.
    factor = given.get("factor", 1.0)
    by_paper = 1.0 if factor <= 1 else 1 + 0.1 * math.log(factor)
    unscaled = config["rope_parameters"].get("apply_yarn_scaling") is False
    assert (inverse_frequencies(model)[1] == 1 and by_paper != 1) <= unscaled
    assert unscaled <= (inverse_frequencies(model)[1] == 1)
    length = given["original_max_position_embeddings"]
    query_scale = {"beta": 0.1, "original_max_position_embeddings": length} if given["llama_4_scaling_beta"] else None
    assert config.get("llama_4_scaling") == query_scale
    assert config.get("original_max_position_embeddings") == (length if query_scale else None)
    assert open_weights(tmp_path / "out").model.rope_parameters == model.rope_parameters
    # vLLM has a table of so many positions, of the model's 256.
    positions = {"yarn": 64, "released factor 0.25": 4}.get(rope)
    assert [line.rpartition(" ")[2] for line in said if line.startswith("vLLM")] == [str(positions)] * (
        positions is not None
    )


def test_layer_by_layer_logits_are_those_of_transformers(tmp_path: Path) -> None:
    write_source(tmp_path / "source", named("fp32"))
    weights = open_weights(tmp_path / "source")
    blocks = logit_blocks(weights, TOKENS, torch.arange(64)[None], weights.dtype)
    found = torch.cat(list(blocks), dim=1)
    assert_close_to_rounding(found, transformers_logits(tmp_path / "source"), ADDITIONS)


def test_fp8_unfolds_as_in_transformers(tmp_path: Path) -> None:
    from transformers import FineGrainedFP8Config

    write_source(tmp_path / "source", Source("fp8 without wrapper", fp8=True))
    unfolded = FineGrainedFP8Config(dequantize=True, weight_block_size=None)
    oracle = Ministral3ForCausalLM.from_pretrained(tmp_path / "source", quantization_config=unfolded)
    import_checkpoint(tmp_path / "source", tmp_path / "imported")
    export_checkpoint(tmp_path / "imported", tmp_path / "out", "ministral3")
    assert_same_bits(read_tensors(tmp_path / "out"), dict(oracle.state_dict()))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_save_by_one_process_returns_every_tensor(source: Source, tmp_path: Path) -> None:
    meaning = write_source(tmp_path / "source", source)
    import_checkpoint(tmp_path / "source", tmp_path / "imported")
    config = config_of(tmp_path / "imported")
    loaded, direct = (load_model(config, tmp_path / d, d == "source") for d in ("imported", "source"))
    for (name, one), two in zip(loaded[0].named_parameters(), direct[0].parameters(), strict=True):
        assert torch.equal(one, two), name
    save_model(config, loaded, tmp_path / "saved")
    dtype = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: None}[source.dtype]
    export_checkpoint(tmp_path / "saved", tmp_path / "out", "nld", dtype=dtype)
    assert_same_bits(read_tensors(tmp_path / "out"), expected_tensors(meaning, source, "nld"))


def test_what_transformers_itself_saves_of_the_wrapper_is_imported(tmp_path: Path) -> None:
    from transformers import Mistral3Config

    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    vision |= {"patch_size": 4, "image_size": 16, "model_type": "pixtral"}
    text = Ministral3Config(**{key: value for key, value in TEXT.items() if key != "model_type"})
    config = Mistral3Config(text_config=text.to_dict(), vision_config=vision, tie_word_embeddings=False)
    torch.manual_seed(0)
    wrapper = Mistral3ForConditionalGeneration(config).eval()
    wrapper.save_pretrained(tmp_path / "source")
    reported: list[str] = []
    import_checkpoint(tmp_path / "source", tmp_path / "imported", report=reported.append)
    assert any("skipped: 15 tensors of the vision model" in line for line in reported)
    run = config_of(tmp_path / "imported")
    (model,) = load_model(run, tmp_path / "imported")
    with torch.no_grad():
        expected = wrapper(TOKENS).logits[0]
    assert_close_to_rounding(causal_logits(run, model, TOKENS), expected, ADDITIONS)
