"""The rows: what is trained. A row is a name, the settings in which it differs, and where it starts.

The settings are keys of `nld-train`, and mean the same in `experiment=ablation_small` and `experiment=ablation_8b`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.paper.design import Design
from benchmarks.paper.steps import Step

TRAIN = "nld_train.train"
_CHAT = ("--chat", "--chat-template", "default", "--tokenizer", "bytes")


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        name: of the row.
        what: it is, in a line.
        settings: in which it differs from the joint training.
        noisy_length: tokens of the noisy stream here, where its blocks need other room than those of `joint`; what is
            left over is inert.
        experiment: in which the settings mean the same at 8B.
        start: `ar`: from the weights of the AR stage. `base`: from those of the base, with the AR stage's tokens more.
    """

    name: str
    what: str
    settings: tuple[str, ...] = ()
    start: Literal["ar", "base"] = "ar"
    noisy_length: int | None = None
    experiment: Literal["ablation_8b", "sft_8b"] = "ablation_8b"

    def small_settings(self, design: Design) -> tuple[str, ...]:
        """The settings in `experiment=ablation_small`."""
        tokens = design.tokens_of(*(("ar", "joint") if self.start == "base" else ("joint",)))
        room = () if self.noisy_length is None else (f"stages.joint.noisy_length={self.noisy_length}",)
        return (*self.settings, *room, f"stages.joint.tokens={tokens}")


_BLOCK = ("diffusion.clean=block", "stages.joint.ar_weight=0")
_SHARED, _SEQUENCE = "diffusion.levels=shared", "stages.joint.averaging=sequence"
ALPHAS = ("0.1", "0.2", "0.3", "0.5", "1.0")

_ROWS = (
    Row("joint", "joint loss, alpha 0.3, from the AR stage (Table 1, row 5)"),
    Row(
        "block_wise",
        "block-wise attention, no AR loss, one level, mean per sequence",
        (*_BLOCK, _SHARED, _SEQUENCE),
        "base",
    ),
    Row("global_averaging", "+ global averaging", (*_BLOCK, _SHARED), "base"),
    Row("varying_mask_ratio", "+ independent levels", _BLOCK, "base"),
    Row("two_stages", "+ from the AR stage", _BLOCK),
    *(Row(f"alpha_{alpha}", f"alpha {alpha}", (f"stages.joint.alpha={alpha}",)) for alpha in ALPHAS if alpha != "0.3"),
    Row("ar_only", "AR loss alone, as many tokens", ("stages.joint.alpha=0",)),
    Row("no_ar_loss", "diffusion loss alone", ("stages.joint.ar_weight=0",)),
    Row("blocks_8", "blocks of 8 instead of 16", ("diffusion.block_size=8",), noisy_length=128),
    Row("blocks_32", "blocks of 32", ("diffusion.block_size=32",), noisy_length=256),
    Row("stratified_levels", "levels spread evenly over a step", ("diffusion.levels=stratified",)),
    Row("levels_of_blocks", "a level of its own for each block", ("diffusion.level_scope=block",)),
    Row("no_fill", "last blocks are cut at the answer's end", ("diffusion.fill=false",), experiment="sft_8b"),
    Row(
        "blocks_of_conversations",
        "blocks from the start of the conversation",
        ("diffusion.blocks=document",),
        noisy_length=192,
        experiment="sft_8b",
    ),
    Row(
        "levels_with_means_per_sequence",
        "independent levels, but a mean per sequence (Table 1, looked into)",
        (*_BLOCK, _SEQUENCE),
        "base",
    ),
)
ROWS = {row.name: row for row in _ROWS}


def data_step(design: Design) -> Step:
    """Questions, text, and tasks of lm-evaluation-harness, prepared."""
    sizes = ("--conversations", str(design.conversations), "--held-out", str(design.held_out))
    write = ("nld_train.commands.data", "tasks", "{own}", *sizes, "--documents", str(design.documents))
    prepare = ("nld_train.commands.data", "prepare")
    commands = (
        write,
        (*prepare, "{own}/text.jsonl", "--out", "{own}", "--tokenizer", "bytes"),
        *((*prepare, f"{{own}}/{name}.jsonl", "--out", "{own}", *_CHAT) for name in ("train", "held-out")),
    )
    return Step("tasks", "data", commands)


def questions_step(of_each: int, design: Design) -> Step:
    """A file of some held-out questions of each kind, with their kinds as categories."""
    words = ("benchmarks.paper.categories", "{0}/held-out.jsonl", "{own}", "--of-each", str(of_each))
    return Step("questions", "prompts", (words,), (data_step(design),))


def prompts_step(count: int, design: Design) -> Step:
    """A file of questions that were trained on, with their answers."""
    words = ("nld_train.commands.data", "prompts", "{0}/train", "--output", "{own}", "--count", str(count))
    return Step("prompts", "prompts", (words,), (data_step(design),))


def training_step(row: str, seed: int, design: Design) -> Step:
    """The training of a row under a seed."""
    found = ROWS[row]
    before = _stage(found.start, seed, design)
    return _training(f"{row}-seed-{seed}", "joint", seed, design, found.small_settings(design), before)


def adapter_step(row: str, seed: int, design: Design) -> Step:
    """The training of the drafter adapter of a row's model, which is decoded with it at the end."""
    settings = (f"stages.drafter.tokens={design.tokens['adapter']}", "evaluation.every=1000000")
    before = training_step(row, seed, design)
    return _training(f"{row}-seed-{seed}-adapter", "drafter", seed, design, settings, before)


def _stage(stage: Literal["base", "ar"], seed: int, design: Design) -> Step:
    """What many rows of a seed start from."""
    before = _stage("base", seed, design) if stage == "ar" else None
    settings = (f"stages.{stage}.tokens={design.tokens[stage]}",)
    return _training(f"{stage}-seed-{seed}", stage, seed, design, settings, before)


def _training(
    label: str, stage: str, seed: int, design: Design, settings: tuple[str, ...], before: Step | None
) -> Step:
    words = [TRAIN, "experiment=ablation_small", f"run.stages=[{stage}]", "run.dir={own}"]
    words += [f"run.seed={design.seed_of_run(stage, seed)}", "logging.wandb.mode=disabled", *_data_words(stage)]
    words += ["init.checkpoint={1}"] if before is not None else []
    after = (data_step(design),) if before is None else (data_step(design), before)
    return Step(label, "runs", ((*words, *design.settings, *settings),), after)


def _data_words(stage: str) -> list[str]:
    words = ["data.tokenizer={0}/tokenizer", _sets("data.train", "text"), "data.validation=[]"]
    if stage == "base":
        return [*words, "validation.every=0"]
    return [*words, _sets(f"stages.{stage}.train", "train"), _sets(f"stages.{stage}.validation", "held-out")]


def _sets(key: str, name: str) -> str:
    return f"{key}=[{{prefix: '{{0}}/{name}', weight: 1}}]"
