"""Every YAML file that is shipped: it composes, fits its plan, and explains each of its keys."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nld_train.config.compose import compose_config, config_directory
from nld_train.config.counts import parameter_count
from nld_train.config.describe import keys_of
from nld_train.config.load import config_from_yaml, config_to_yaml
from nld_train.config.plan import stage_plans
from nld_train.config.schema import Config
from nld_train.config.validate import validate
from nld_train.planner.choose import all_plans
from nld_train.planner.hardware import GIBIBYTE, assumptions
from nld_train.planner.layouts import override_words
from nld_train.planner.memory import largest_memory
from nld_train.planner.request import read_request

DIRECTORY = config_directory()
EXPERIMENTS = sorted(path.stem for path in (DIRECTORY / "experiment").glob("*.yaml"))
FILES = sorted(DIRECTORY.rglob("*.yaml"))
CHOICES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in FILES
    if path.parent.parent == DIRECTORY and path.parent.name != "experiment"
)


def test_the_promised_experiments_are_there() -> None:
    assert set(EXPERIMENTS) >= {
        "quickstart",
        "paper_3b",
        "paper_8b",
        "paper_14b",
        "ablation_8b",
        "sft_3b",
        "sft_8b",
        "sft_14b",
        "sft_8b_lora",
        "vlm_quickstart",
        "vlm_8b",
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_fits_its_own_plan(experiment: str) -> None:
    config = compose_config([f"experiment={experiment}", "run.dry=true"])
    validate(config, config.run.plan_world_size)
    assert config.run.name == experiment
    assert config.run.dir == f"runs/{experiment}"
    assert config_from_yaml(config_to_yaml(config)) == config


@pytest.mark.parametrize("choice", CHOICES)
def test_every_file_of_a_group_composes(choice: str) -> None:
    extra = ["run.stages=[joint]"] if choice == "stages=ablation" else []
    config = compose_config([choice, *extra])
    assert config_from_yaml(config_to_yaml(config)) == config


def test_without_an_experiment_it_is_the_quickstart() -> None:
    assert compose_config() == compose_config(["experiment=quickstart"])


@pytest.mark.parametrize(("size", "billions"), [("3b", "3.83"), ("8b", "8.49"), ("14b", "13.51")])
def test_paper_experiments_hold_the_papers_values(size: str, billions: str) -> None:
    config = compose_config([f"experiment=paper_{size}"])
    assert f"{parameter_count(config.model) / 1e9:.2f}" == billions
    assert config.run.plan_world_size == 256
    # Not the paper's: by the planner's count, see test_layouts_are_those_that_the_planner_would_choose.
    assert config.parallel.tensor == {"3b": 1, "8b": 2, "14b": 2}[size]
    assert config.parallel.sequence == (config.parallel.tensor > 1)
    assert (config.batch.global_size, config.batch.sequence_length) == (512, 4096)
    assert (config.diffusion.block_size, config.diffusion.epsilon) == (64, 1e-3)
    assert config.model.rope_parameters.rope_theta == (1e9 if size == "14b" else 1e6)
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay, optimizer.clip_grad) == (0.9, 0.95, 0.1, 1.0)
    for name, tokens, alpha in (("ar", 10**12, 0.0), ("joint", 3 * 10**11, 0.3)):
        stage = config.stages[name]
        assert (stage.tokens, stage.alpha, stage.averaging) == (tokens, alpha, "global")
        schedule = stage.schedule
        assert (schedule.learning_rate, schedule.final_learning_rate) == (1e-5, 3e-6)
        assert (schedule.warmup_fraction, schedule.decay_fraction) == (0.01, 0.2)


TABLE_1 = {
    "baseline": ("block", "shared", "sequence", 0.0),
    "global_averaging": ("block", "shared", "global", 0.0),
    "mask_ratio": ("block", "independent", "global", 0.0),
    "two_stages": ("block", "independent", "global", 0.0),
    "ar_loss": ("causal", "independent", "global", 1.0),
    "no_ar": ("causal", "independent", "global", 0.0),
}


@pytest.mark.parametrize(("experiment", "world"), [("ablation_small", 1), ("ablation_8b", 256)])
@pytest.mark.parametrize("row", TABLE_1)
def test_rows_of_the_ablations(experiment: str, world: int, row: str) -> None:
    """Each row has the changes of those before it, and nothing else; `ar_loss` is the experiment itself."""
    words = [f"experiment={experiment}", "run.stages=[joint]", "run.dry=true"]
    config = compose_config([*words, f"ablation={row}"])
    validate(config, world)
    stage, diffusion = config.stages["joint"], config.diffusion
    assert (diffusion.clean, diffusion.levels, stage.averaging, stage.ar_weight) == TABLE_1[row]
    if row == "ar_loss":
        assert config == compose_config(words)


@pytest.mark.parametrize(("size", "tensor", "context"), [("3b", 1, 4), ("8b", 2, 4), ("14b", 4, 2)])
def test_fine_tuning_experiments_hold_the_papers_values(size: str, tensor: int, context: int) -> None:
    config = compose_config([f"experiment=sft_{size}", "run.dry=true"])
    (plan,) = stage_plans(config)
    stage = plan.stage
    assert (plan.name, stage.kind, plan.steps) == ("sft", "sft", 10_729)
    assert (stage.tokens, stage.alpha, stage.averaging, stage.lora) == (45 * 10**9, 0.3, "global", None)
    assert (stage.schedule.learning_rate, stage.schedule.final_learning_rate) == (2.5e-6, 2.5e-7)
    assert (stage.schedule.warmup_fraction, stage.schedule.decay_fraction) == (0.01, 0.2)
    assert (config.batch.global_size, config.batch.sequence_length) == (256, 16384)
    diffusion = config.diffusion
    assert (diffusion.block_size, diffusion.blocks, diffusion.fill) == (32, "answer", True)
    assert (config.parallel.tensor, config.parallel.context) == (tensor, context)
    assert (config.data.documents, config.init.required) == ("isolate", True)


@pytest.mark.parametrize("size", ["3b", "8b", "14b"])
def test_fine_tuning_experiments_fit_into_80_gigabytes(size: str) -> None:
    """With a noisy stream as long as the clean one, more than which answers seldom need."""
    config = compose_config([f"experiment=sft_{size}", "run.dry=true", "execution.device=cuda"])
    assert largest_memory(config, config.run.plan_world_size).total <= 72 * GIBIBYTE
    control = compose_config([f"experiment=sft_{size}", "run.dry=true", "stages.sft.alpha=0"])
    validate(control, 256)
    assert stage_plans(control)[0].kind.stream_lengths(16384) == (16384,)


def test_a_vision_language_model_fits_into_80_gigabytes_with_large_pictures() -> None:
    config = compose_config(["experiment=vlm_8b", "run.dry=true", "execution.device=cuda"])
    validate(config, config.run.plan_world_size)
    assert largest_memory(config, config.run.plan_world_size).total <= 72 * GIBIBYTE


def test_a_lora_of_the_8b_model_fits_onto_one_gpu() -> None:
    config = compose_config(["experiment=sft_8b_lora", "run.dry=true", "execution.device=cuda"])
    memory = largest_memory(config, 1)
    assert memory.total <= 40 * GIBIBYTE
    assert memory.weights > 50 * memory.gradients / 2


def test_stages_of_a_whole_training_run_after_one_another() -> None:
    """As in docs/training.md; batch and blocks are the run's."""
    layout = ["parallel.tensor=4", "parallel.context=1"]
    words = ["experiment=sft_8b", "stages=[paper,sft,drafter]", "init.required=false", "run.dry=true", *layout]
    config = compose_config([*words, "stages.ar.tokens=1e10", "data.documents=isolate"])
    validate(config, 256)
    assert config.run.stages == ("ar", "joint", "sft", "drafter")


@pytest.mark.long  # counts every layout
@pytest.mark.parametrize("experiment", ["paper_3b", "paper_8b", "paper_14b", "sft_3b", "sft_8b", "sft_14b"])
def test_layouts_are_those_that_the_planner_would_choose(experiment: str) -> None:
    """Or within 2 % of the best, without a pipeline where that costs no more."""
    request = read_request([f"experiment={experiment}", "gpus=256"])
    plans = all_plans(request, assumptions({}, Path("/nowhere")).hardware)
    own = override_words(request.config)
    (plan,) = [plan for plan in plans if override_words(plan.config) == own]
    assert plan.fits
    assert plan.days <= 1.02 * plans[0].days


def test_ablation_trains_the_joint_stage_only() -> None:
    config = compose_config(["experiment=ablation_8b", "stages.joint.averaging=sequence", "diffusion.levels=shared"])
    assert config.run.stages == ("joint",)
    assert config.stages["joint"].tokens == 25 * 10**9
    assert config.stages["joint"].averaging == "sequence"


def test_data_of_the_paper_experiments_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLD_DATA_TRAIN", "[{prefix: /corpus/a, weight: 2}, {prefix: /corpus/b, weight: 0.5}]")
    monkeypatch.setenv("NLD_DATA_TOKENIZER", "/tokenizers/ministral3")
    config = compose_config(["experiment=paper_8b", "validation.every=0", "evaluation.every=0"])
    assert [(source.prefix, source.weight) for source in config.data.train] == [("/corpus/a", 2), ("/corpus/b", 0.5)]
    assert config.data.tokenizer == "/tokenizers/ministral3"
    validate(config, 256)


def _leaves(node: yaml.Node, skip: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Name and line number of each key whose value is no mapping, also inside mappings and lists."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _leaves(item, ())
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.value not in skip:
            if not isinstance(value, yaml.MappingNode):
                yield key.value, key.start_mark.line
            yield from _leaves(value, ())


def _keys(path: Path) -> dict[str, bool]:
    """Each key of a file, and whether a comment there explains it."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found: dict[str, bool] = {}
    for name, number in _leaves(yaml.compose(text), skip=("defaults",)):
        explained = lines[number - 1].strip().startswith("#") or " # " in lines[number]
        found[name] = found.get(name, False) or explained
    return found


def _group(path: Path) -> str:
    """`model`, `batch` and so on; empty for the root and the experiments, which change keys of any group."""
    group = path.relative_to(DIRECTORY).parts[0]
    return "" if group in ("train.yaml", "experiment") else group


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DIRECTORY)))
def test_every_key_is_explained_by_a_comment(path: Path) -> None:
    """In the file itself or, once for all of them, in another file of its group."""
    there = {name for other in FILES if _group(other) == _group(path) for name, said in _keys(other).items() if said}
    assert path.read_text(encoding="utf-8").startswith("#")
    assert set(_keys(path)) <= there


def test_every_key_of_the_schema_is_explained_in_a_file() -> None:
    explained = {name for path in FILES for name, said in _keys(path).items() if said}
    shipped = {key.name.rpartition(".")[2] for key in keys_of(Config)}
    # A mapping is explained by its keys.
    assert shipped - explained == {"adapter"}
