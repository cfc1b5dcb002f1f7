"""Impossible layouts and contradictions: each is refused by a line that names its key."""

from typing import Any

import pytest

from nld_train.config.compose import compose_config
from nld_train.config.load import config_to_dict
from nld_train.config.schema import Config
from nld_train.config.validate import validate
from nld_train.errors import UserError

ROPE = "model.rope_parameters"
YARN = {
    f"{ROPE}.{name}": value
    for name, value in {
        "rope_type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1,
        "mscale_all_dim": 1,
    }.items()
}
PIPELINE = {"parallel.pipeline": 2, "parallel.virtual_pipeline": 2}
TENSOR = {"parallel.tensor": 2, "parallel.sequence": True}
FOUR = {"parallel.tensor": 4, "model.num_key_value_heads": 4}
FP8 = {"execution.fp8": "hybrid", "evaluation.every": 0}
PROFILE = {"execution.profile.first_step": 4}
AWARE = {"optimizer.precision_aware": True}
OVERLAP = {"parallel.overlap_tensor": True}
ODD = {"batch.micro_size": 1, "batch.sequence_length": 240}

# Changed values, number of processes, the key that must be named, and what must be said about it.
REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({"run.dir": " "}, 1, "run.dir", "path"),
    ({"run.seed": -1}, 1, "run.seed", "at least 0"),
    ({"run.seed": 2**63}, 1, "run.seed", "below 2**63"),
    ({"init.required": True}, 1, "init.checkpoint", "must name trained weights"),
    ({"run.stages": []}, 1, "run.stages", "defined: ar, joint"),
    ({"run.stages": ["ar", "sft"]}, 1, "run.stages", "'sft'"),
    ({"run.stages": ["ar", "ar"]}, 1, "run.stages", "only once"),
    ({"run.max_steps": 0}, 1, "run.max_steps", "at least 1"),
    ({"run.plan_world_size": 0}, 1, "run.plan_world_size", "at least 1"),
    ({"model.head_dim": 33}, 1, "model.head_dim", "even"),
    ({"model.num_key_value_heads": 3}, 1, "model.num_key_value_heads", "1, 2, 4"),
    ({"model.num_hidden_layers": 0}, 1, "model.num_hidden_layers", "at least 1"),
    ({"model.rms_norm_eps": 0}, 1, "model.rms_norm_eps", "above 0"),
    ({"model.mask_token_id": 260}, 1, "model.mask_token_id", "[0, 260)"),
    ({"model.mask_token_id": -1}, 1, "model.mask_token_id", "[0, 260)"),
    ({"model.mask_token_id": 1}, 1, "model.mask_token_id", "bos_token_id"),
    ({"model.mask_token_id": 2}, 1, "model.mask_token_id", "eos_token_id"),
    ({"model.mask_token_id": 0}, 1, "model.mask_token_id", "pad_token_id"),
    ({"model.eos_token_id": 400}, 1, "model.eos_token_id", "[0, 260)"),
    ({f"{ROPE}.rope_type": "linear"}, 1, f"{ROPE}.rope_type", "default or yarn"),
    ({f"{ROPE}.rope_theta": 0}, 1, f"{ROPE}.rope_theta", "above 0"),
    ({f"{ROPE}.factor": 2}, 1, f"{ROPE}.factor", "rope_type=default"),
    ({**YARN, f"{ROPE}.factor": None}, 1, f"{ROPE}.factor", "above 0"),
    ({f"{ROPE}.llama_4_scaling_beta": 0.1}, 1, f"{ROPE}.original_max_position_embeddings", "above 0"),
    ({"data.train": []}, 1, "data.train", "prefix"),
    ({"data.validation": []}, 1, "data.validation", "validation.every=0"),
    ({"data.train": [{"prefix": "a", "weight": 0}]}, 1, "data.train[0].weight", "above 0"),
    ({"data.train": [{"prefix": "", "weight": 1}]}, 1, "data.train[0].prefix", "path"),
    ({"data.workers": -1}, 1, "data.workers", "at least 0"),
    ({"stages.joint.train": []}, 1, "stages.joint.train", "null"),
    ({"diffusion.block_size": 0}, 1, "diffusion.block_size", "at least 1"),
    ({"diffusion.epsilon": 1}, 1, "diffusion.epsilon", "[0, 1)"),
    ({"diffusion.epsilon": -0.1}, 1, "diffusion.epsilon", "[0, 1)"),
    ({"stages.joint.tokens": 0}, 1, "stages.joint.tokens", "above 0"),
    ({"stages.joint.alpha": -0.1}, 1, "stages.joint.alpha", "at least 0"),
    ({"stages.joint.ar_weight": -0.1}, 1, "stages.joint.ar_weight", "at least 0"),
    ({"stages.ar.ar_weight": 0}, 1, "stages.ar.ar_weight", "must be 1 with kind=ar"),
    ({"stages.ar.schedule.learning_rate": 0}, 1, "stages.ar.schedule.learning_rate", "above 0"),
    ({"stages.ar.schedule.final_learning_rate": 1}, 1, "stages.ar.schedule.final_learning_rate", "[0, "),
    ({"stages.ar.schedule.warmup_fraction": 1.1}, 1, "stages.ar.schedule.warmup_fraction", "[0, 1]"),
    ({"stages.ar.schedule.decay_fraction": -1}, 1, "stages.ar.schedule.decay_fraction", "[0, 1]"),
    ({"stages.ar.schedule.decay_fraction": 0.99}, 1, "stages.ar.schedule.decay_fraction", "at most 1"),
    ({"batch.micro_size": 0}, 1, "batch.micro_size", "at least 1"),
    ({"batch.sequence_length": 1025}, 1, "batch.sequence_length", "max_position_embeddings=1024"),
    ({"batch.global_size": 18, "batch.micro_size": 4}, 1, "batch.global_size", "multiple of 4"),
    ({"batch.micro_size": 4}, 8, "batch.global_size", "multiple of 32"),
    ({"optimizer.beta2": 1}, 1, "optimizer.beta2", "[0, 1)"),
    ({"optimizer.epsilon": 0}, 1, "optimizer.epsilon", "(0, 1]"),
    ({"optimizer.weight_decay": -1}, 1, "optimizer.weight_decay", "at least 0"),
    ({"optimizer.clip_grad": -1}, 1, "optimizer.clip_grad", "at least 0"),
    ({"execution.device": "cpu", "execution.precision": "bf16"}, 1, "execution.precision", "fp32"),
    ({"execution.device": "cpu", "execution.layers": "transformer_engine"}, 1, "execution.layers", "local"),
    ({"execution.device": "cpu", "execution.attention": "split"}, 1, "execution.attention", "no backward pass"),
    ({"parallel.context": 2, "execution.attention": "decomposed"}, 2, "execution.attention", "use flex, chunked"),
    ({"execution.device": "cpu", "execution.fp8": "hybrid"}, 1, "execution.fp8", "Transformer Engine"),
    ({"execution.device": "cpu", "execution.compile": "reduce-overhead"}, 1, "execution.compile", "CUDA graphs"),
    ({"execution.layers": "local", "execution.fp8": "e4m3"}, 1, "execution.fp8", "execution.layers=transformer"),
    ({**FP8, "execution.precision": "fp32"}, 1, "execution.precision", "bf16"),
    ({**FP8, "evaluation.every": 5}, 1, "evaluation.every", "must be 0"),
    ({**FP8, "batch.micro_size": 1, "batch.sequence_length": 248}, 1, "batch.sequence_length", "multiple of 16"),
    (
        {**FP8, **ODD, "execution.fp8_recipe": "mxfp8"},
        1,
        "batch.sequence_length",
        "fp8_recipe=mxfp8 needs a multiple of 32",
    ),
    ({**FP8, **ODD, "execution.fp8_recipe": "blockwise"}, 1, "batch.sequence_length", "needs a multiple of 128"),
    (
        {"execution.layers": "transformer_engine", "execution.compile": "default"},
        1,
        "execution.compile",
        "fused already",
    ),
    ({"execution.recompute_modules": []}, 1, "execution.recompute_modules", "at least one"),
    ({"execution.recompute_modules": ["mlp", "mlp"]}, 1, "execution.recompute_modules", "only once"),
    ({"optimizer.cpu_offload": 1.1}, 1, "optimizer.cpu_offload", "[0, 1]"),
    ({"optimizer.cpu_offload": 0.5}, 1, "optimizer.cpu_offload", "precision_aware=true"),
    ({"optimizer.moments": "bf16"}, 1, "optimizer.moments", "must be fp32"),
    ({**AWARE, "optimizer.moments": "bf16", "optimizer.cpu_offload": 1.0}, 1, "optimizer.moments", "must be fp32"),
    ({**AWARE, "execution.device": "cpu"}, 1, "optimizer.precision_aware", "execution.device=cpu"),
    ({"parallel.overlap_tensor": True}, 1, "parallel.overlap_tensor", "parallel.sequence"),
    ({**TENSOR, **OVERLAP, "execution.layers": "local"}, 2, "parallel.overlap_tensor", "Transformer Engine"),
    ({"execution.recompute_layers": 0}, 1, "execution.recompute_layers", "at least 1"),
    ({"execution.head_chunk_rows": 0}, 1, "execution.head_chunk_rows", "at least 1"),
    ({"execution.profile.last_step": 3}, 1, "execution.profile.last_step", "no effect without"),
    ({**PROFILE, "execution.profile.last_step": 3}, 1, "execution.profile.last_step", "at least"),
    ({**PROFILE, "execution.profile.ranks": []}, 1, "execution.profile.ranks", "at least one process"),
    ({**PROFILE, "execution.profile.ranks": [0, 0]}, 1, "execution.profile.ranks", "only once"),
    ({**PROFILE, "execution.profile.ranks": [0, 1]}, 1, "execution.profile.ranks", "number of processes, 1"),
    ({**PROFILE, "execution.profile.trace": False}, 1, "execution.profile.trace", "memory"),
    ({**PROFILE, "execution.device": "cpu", "execution.profile.nvtx": True}, 1, "execution.profile.nvtx", "needs CUDA"),
    ({"execution.timeout_minutes": 0}, 1, "execution.timeout_minutes", "[0.01, 10080]"),
    ({"execution.timeout_minutes": 1e9}, 1, "execution.timeout_minutes", "[0.01, 10080]"),
    ({"checkpoint.every": 0}, 1, "checkpoint.every", "at least 1"),
    ({"logging.every": 0}, 1, "logging.every", "at least 1"),
    ({"logging.peak_tflops": 0}, 1, "logging.peak_tflops", "above 0"),
    ({"validation.levels": [0.5, 0]}, 1, "validation.levels", "(0, 1]"),
    ({"validation.levels": [0.5, 0.5]}, 1, "validation.levels", "only once"),
    ({"validation.levels": []}, 1, "validation.levels", "at least one"),
    ({"validation.samples": 0}, 1, "validation.samples", "at least 1"),
    ({"parallel.tensor": 0}, 1, "parallel.tensor", "at least 1"),
    ({"parallel.tensor": 4}, 4, "parallel.tensor", "num_key_value_heads=2; valid: 1, 2"),
    ({"parallel.tensor": 2, "model.intermediate_size": 513}, 2, "parallel.tensor", "intermediate_size=513"),
    ({"parallel.sequence": True}, 1, "parallel.sequence", "parallel.tensor > 1"),
    ({**TENSOR, "batch.sequence_length": 255}, 2, "batch.sequence_length", "stage 'ar' sends 255"),
    ({"parallel.overlap_param_gather": True}, 1, "parallel.overlap_param_gather", "overlap_grad_reduce"),
    ({"parallel.context": 0}, 1, "parallel.context", "at least 1"),
    ({"parallel.context": 2}, 3, "world size", "multiple of 2"),
    ({"parallel.context": 2, "batch.sequence_length": 254}, 2, "batch.sequence_length", "take a multiple of 4"),
    ({**TENSOR, **FOUR, "parallel.context": 2, "batch.sequence_length": 252}, 8, "batch.sequence_length", "8 equal"),
    ({"parallel.pipeline": 3}, 3, "parallel.pipeline", "num_hidden_layers=4; valid: 1, 2, 4"),
    ({"parallel.virtual_pipeline": 2}, 1, "parallel.virtual_pipeline", "parallel.pipeline > 1"),
    ({**PIPELINE, "parallel.virtual_pipeline": 1}, 2, "parallel.virtual_pipeline", "at least 2"),
    ({**PIPELINE, "parallel.virtual_pipeline": 3}, 2, "parallel.virtual_pipeline", "valid: 2"),
    ({**PIPELINE, "batch.global_size": 12}, 2, "batch.global_size", "multiple of 8"),
    ({"parallel.tensor": 2, "parallel.pipeline": 2}, 6, "world size", "multiple of 4"),
    ({}, 0, "world size", "multiple of 1"),
    ({"run.dry": True, "run.plan_world_size": 3, "parallel.tensor": 2}, 3, "run.plan_world_size", "multiple of 2"),
]

ACCEPTED: list[tuple[dict[str, Any], int]] = [
    ({}, 1),
    ({}, 2),
    (YARN, 1),
    ({**YARN, f"{ROPE}.factor": 0.25}, 1),
    ({f"{ROPE}.llama_4_scaling_beta": 0.1, f"{ROPE}.original_max_position_embeddings": 64}, 1),
    (TENSOR, 2),
    (PIPELINE, 2),
    ({**TENSOR, "parallel.context": 2}, 8),
    ({**TENSOR, **PIPELINE}, 4),
    ({"parallel.overlap_grad_reduce": True, "parallel.overlap_param_gather": True}, 2),
    # Two streams of odd length are an even number of positions.
    ({**TENSOR, "batch.sequence_length": 255, "run.stages": ["joint"]}, 2),
    ({"diffusion.block_size": 100}, 1),
    ({"diffusion.block_size": 1000}, 1),
    ({"run.dry": True, "data.train": [], "data.validation": []}, 1),
    ({"data.validation": [], "validation.every": 0, "evaluation.every": 0}, 1),
    ({"execution.device": "cpu", "execution.precision": "fp32"}, 1),
    ({"execution.device": "cpu", "execution.attention": "decomposed", "execution.compile": "default"}, 1),
    (FP8, 1),
    ({**FP8, **ODD, "execution.fp8_recipe": "delayed"}, 1),
    ({**FP8, "batch.sequence_length": 256, "execution.fp8_recipe": "blockwise"}, 1),
    ({**AWARE, "optimizer.moments": "fp8"}, 1),
    ({**AWARE, "optimizer.cpu_offload": 0.5}, 1),
    ({**TENSOR, **OVERLAP, "evaluation.every": 5}, 2),
    ({"run.seed": 2**63 - 1}, 1),
    ({"init.required": True, "init.checkpoint": "a"}, 1),
    ({"init.required": True, "run.dry": True}, 1),
    ({"stages.ar.schedule.warmup_fraction": 0.8}, 1),
    ({"run.stages": ["joint", "ar"]}, 1),
]


@pytest.mark.parametrize(("values", "world_size", "key", "said"), REFUSED)
def test_impossible_settings_are_refused(
    change: Any, values: dict[str, Any], world_size: int, key: str, said: str
) -> None:
    config = change(values)
    with pytest.raises(UserError) as refused:
        validate(config, world_size)
    message = str(refused.value)
    assert message.startswith(f"{key}=")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(("values", "world_size"), ACCEPTED)
def test_possible_settings_are_accepted(change: Any, values: dict[str, Any], world_size: int) -> None:
    validate(change(values), world_size)


def test_an_adapter_is_not_trained_under_context_parallelism() -> None:
    words = ["stages=drafter", "run.stages=[drafter]", "init.checkpoint=a", "parallel.context=2"]
    with pytest.raises(UserError, match=r"^parallel.context=2: stage 'drafter' trains an adapter"):
        validate(compose_config(words), 2)


def test_an_adapter_is_not_trained_with_overlapped_exchange() -> None:
    """Its drafts have lengths of their own, and the buffers one."""
    words = ["stages=drafter", "init.checkpoint=a", "parallel.tensor=2", "parallel.sequence=true", "evaluation.every=0"]
    with pytest.raises(UserError, match=r"^parallel.overlap_tensor=true: .* stage 'drafter' trains an adapter"):
        validate(compose_config([*words, "parallel.overlap_tensor=true"]), 2)


def test_a_stage_is_not_called_like_held_out_validation(change: Any, tiny: Config) -> None:
    """Their noise would be the same."""
    stages = {"validation": config_to_dict(tiny)["stages"]["joint"]}
    with pytest.raises(UserError, match=r"^stages=\[validation\]: must not define a stage 'validation'"):
        validate(change({"stages": stages, "run.stages": ["validation"]}), 1)


def test_an_ablation_needs_its_base_model() -> None:
    """Without it, it would train random weights; a plan needs none."""
    data = ["data.train=[{prefix: a, weight: 1}]", "data.validation=[{prefix: a, weight: 1}]"]
    with pytest.raises(UserError, match=r"^init.checkpoint=null: must name trained weights"):
        validate(compose_config(["experiment=ablation_8b", *data]), 256)
    validate(compose_config(["experiment=ablation_8b", *data, "init.checkpoint=base"]), 256)
    validate(compose_config(["experiment=ablation_8b", "run.dry=build"]), 256)


def test_a_stage_may_bring_its_own_data(change: Any) -> None:
    own = [{"prefix": "a", "weight": 1}]
    values: dict[str, Any] = {"data.train": [], "stages.ar.train": own, "run.stages": ["ar"]}
    validate(change(values), 1)
    with pytest.raises(UserError, match=r"^data.train"):
        validate(change({**values, "run.stages": ["ar", "joint"]}), 1)


def test_paper_experiments_need_their_data_named() -> None:
    with pytest.raises(UserError, match=r"^data.train="):
        validate(compose_config(["experiment=paper_3b"]), 256)
