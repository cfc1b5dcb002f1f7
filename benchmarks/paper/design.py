"""The design of the experiments: tokens, seeds, and the test. It is written into docs/paper.md before any run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# A difference beyond so many standard errors is decided.
DECIDED = 2.0
# The AR stage of a seed has another order of the conversations than the stage after it.
_ORDER_OF_THE_AR_STAGE = 1000


@dataclass(frozen=True)
class Design:
    """What all rows share.

    Attributes:
        seeds: of the tables with the most wanted claims; a table names how many of them it takes.
        tokens: by stage of `experiment=ablation_small`: `base`, `ar`, `joint`, and of the drafter adapter.
        conversations: written for training.
        documents: of text, for the base.
        held_out: questions of each kind.
        settings: of every training, as for `nld-train`.
        max_new_tokens: of an answer.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tokens: Mapping[str, int] = field(
        default_factory=lambda: {"base": 600_000, "ar": 500_000, "joint": 1_500_000, "adapter": 300_000}
    )
    conversations: int = 60_000
    documents: int = 20_000
    held_out: int = 60
    settings: tuple[str, ...] = ()
    max_new_tokens: int = 40

    def tokens_of(self, *stages: str) -> int:
        """Tokens of several stages together."""
        return sum(self.tokens[stage] for stage in stages)

    def seed_of_run(self, stage: str, seed: int) -> int:
        """`run.seed` of a stage."""
        return seed + _ORDER_OF_THE_AR_STAGE if stage == "ar" else seed


# A minute: it shows that everything runs, and decides nothing about the paper.
SMALL = Design(
    seeds=(0, 1),
    tokens={"base": 4096, "ar": 4096, "joint": 24_576, "adapter": 4096},
    conversations=2000,
    documents=400,
    held_out=2,
    settings=(
        "model.num_hidden_layers=1",
        "model.hidden_size=32",
        "model.intermediate_size=64",
        "model.num_attention_heads=2",
        "model.num_key_value_heads=1",
        "model.head_dim=16",
        "validation.samples=2",
    ),
    max_new_tokens=8,
)
