"""The cases of the parity tests: a layout, an objective and a way to compute, over a tiny model and two token sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

from tiny_runs import STEP_TOKENS, TINY_MODEL, composed, data_overrides

from nld_train.config.schema import Config

STEPS = 2
MODEL = composed(*TINY_MODEL).model
Kind = Literal["train", "naive", "validation", "gradients", "nan weight", "infinite gradient"]
STAGES = ("ar", "joint", "sft")
AVERAGINGS = ("global", "contributing", "masked", "sequence")


@dataclass(frozen=True)
class Layout:
    """How a group of `world` processes shares the model."""

    name: str
    world: int
    overrides: tuple[str, ...] = ()


SINGLE = Layout("single", 1)
TP2 = Layout("tp2", 2, ("parallel.tensor=2",))
PP2 = Layout("pp2", 2, ("parallel.pipeline=2",))
PP2_VIRTUAL = Layout("pp2-virtual2", 2, ("parallel.pipeline=2", "parallel.virtual_pipeline=2"))
DP2 = Layout("dp2", 2)
TP2_SEQUENCE = Layout("tp2-sequence", 2, ("parallel.tensor=2", "parallel.sequence=true"))
TP4 = Layout("tp4", 4, ("parallel.tensor=4",))
PP4 = Layout("pp4", 4, ("parallel.pipeline=4",))
DP4 = Layout("dp4", 4)
TP2_PP2 = Layout("tp2-pp2", 4, ("parallel.tensor=2", "parallel.pipeline=2"))
TP2_DP2 = Layout("tp2-dp2", 4, ("parallel.tensor=2",))
PP2_DP2 = Layout("pp2-dp2", 4, ("parallel.pipeline=2",))
CP2 = Layout("cp2", 2, ("parallel.context=2",))
CP4 = Layout("cp4", 4, ("parallel.context=4",))
CP2_DP2 = Layout("cp2-dp2", 4, ("parallel.context=2",))
CP2_PP2 = Layout("cp2-pp2", 4, ("parallel.context=2", "parallel.pipeline=2"))
CP2_TP2_SEQUENCE = Layout("cp2-tp2-sequence", 4, ("parallel.context=2", *TP2_SEQUENCE.overrides))
CONTEXT = (CP2, CP4, CP2_DP2, CP2_PP2, CP2_TP2_SEQUENCE)
LAYOUTS = (TP2, PP2, PP2_VIRTUAL, DP2, TP2_SEQUENCE, TP4, PP4, DP4, TP2_PP2, TP2_DP2, PP2_DP2, *CONTEXT)


@dataclass(frozen=True)
class Case:
    """A few optimizer steps from one set of starting weights.

    Attributes:
        layout: of the group.
        stage: `ar`, `joint` or `sft`.
        averaging: of the losses.
        micro_size: samples of a micro-batch.
        extra: overrides that must not change the result.
        kind: `train`; `naive`, the naive computation of the first step; `gradients`, those of the first step, weight by
            weight; `validation`, before any step; or one of the poisons, after which the last process has a NaN among
            its weights or an infinity among its gradients.
        key_value_heads: 2, or 4 where four tensor-parallel processes share them.
        documents: whether attention stays inside them.
        settings: overrides of what is computed.
    """

    layout: Layout
    stage: str
    averaging: str = "global"
    micro_size: int = 2
    extra: tuple[str, ...] = ()
    kind: Kind = "train"
    key_value_heads: int = 2
    documents: Literal["isolate", "ignore"] = "isolate"
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Names the case in test ids and results."""
        parts = [self.layout.name, self.stage, self.averaging, f"micro{self.micro_size}"]
        parts += [override.rpartition(".")[2] for override in (*self.extra, *self.settings)]
        parts += ["heads4"] * (self.key_value_heads == 4) + [self.kind] * (self.kind != "train")
        parts += ["ignore"] * (self.documents == "ignore")
        return "-".join(parts)

    def single(self) -> Case:
        """The same steps on one process, computed the plain way."""
        return replace(self, layout=SINGLE, micro_size=2, extra=())

    def by_hand(self) -> Case:
        """The same first step by the naive computation."""
        return replace(self.single(), kind="naive")

    def references(self) -> tuple[Case, ...]:
        """What the case is compared with."""
        if self.kind in ("validation", "gradients"):
            return (self.single(),)
        return (self.single(), self.by_hand()) if self.kind == "train" else ()

    def config(self, prefix: str) -> Config:
        """The settings, over the token set at `prefix`."""
        stage = f"stages.{self.stage}"
        return composed(
            *TINY_MODEL,
            *data_overrides(prefix),
            *(conversation_overrides(prefix) if self.stage == "sft" else ()),
            f"run.dir={prefix}-run",  # where conversations are packed
            f"model.num_key_value_heads={self.key_value_heads}",
            f"run.stages=[{self.stage}]",
            f"data.documents={self.documents}",
            f"{stage}.tokens={STEPS * STEP_TOKENS}",
            f"{stage}.averaging={self.averaging}",
            f"{stage}.schedule.warmup_fraction=0",
            f"batch.micro_size={self.micro_size}",
            f"execution.attention={'dense' if self.kind == 'naive' else 'auto'}",
            *self.layout.overrides,
            *self.extra,
            *self.settings,
        )


def conversation_overrides(prefix: str) -> tuple[str, ...]:
    """A fine-tuning stage over the conversations beside a token set, with a noisy stream of its own length."""
    chat = Path(prefix).with_name("chat")
    sources = f"[{{prefix: {chat}, weight: 1}}]"
    return (
        "stages=sft",
        f"stages.sft.train={sources}",
        f"stages.sft.validation={sources}",
        "stages.sft.noisy_length=32",
        "stages.sft.schedule.learning_rate=2e-3",
        "stages.sft.schedule.final_learning_rate=2e-4",
    )


def possible(layout: Layout, micro_size: int) -> bool:
    """Whether the global batch of 8 can be cut so."""
    data_size = 1
    if layout in (DP2, TP2_DP2, PP2_DP2, CP2_DP2):
        data_size = 2
    if layout is DP4:
        data_size = 4
    return 8 % (micro_size * data_size) == 0


def layout_cases(
    averagings: Sequence[str], micro_sizes: Sequence[int], layouts: Sequence[Layout] = LAYOUTS
) -> list[Case]:
    """Layouts with steps of each stage."""
    return [
        Case(layout, stage, averaging, micro_size, key_value_heads=4 if layout is TP4 else 2)
        for layout in layouts
        for stage in STAGES
        for averaging in averagings
        for micro_size in micro_sizes
        if possible(layout, micro_size)
    ]


Pair = tuple[tuple[str, object], tuple[str, object]]
FACTORS = ("layout", "stage", "averaging", "micro_size")


def pairs_of(case: Case) -> set[Pair]:
    """Each two of what a case combines."""
    return set(combinations([(name, getattr(case, name)) for name in FACTORS], 2))


def pairwise(candidates: Sequence[Case], given: Sequence[Case]) -> list[Case]:
    """Some of the candidates: with the given cases, each pair that is in a candidate is in one case at least.

    Always the candidate with the most pairs that are missing still, and the first among equals.
    """
    chosen: list[Case] = []
    missing = set().union(*map(pairs_of, candidates)) - set().union(*map(pairs_of, given))
    while missing:
        best = max(candidates, key=lambda case: len(pairs_of(case) & missing))
        chosen.append(best)
        missing -= pairs_of(best)
    return chosen
