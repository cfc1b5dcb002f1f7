"""The interface of stage kinds: an object that defines everything in which stages differ.

A new kind is one file with a subclass of `StageKind` and one entry in `config.stage_kinds`: plans, checks, the planner,
the training loop and the hooks use the object and compare no names of kinds. Commands that must start fast import the
module too, so torch, and everything that imports torch, is imported inside `make_trainer` only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from nld_train.config.checks import refuse_unless
from nld_train.config.counts import frozen_flops, training_flops
from nld_train.config.schema import LORA_TARGETS, Config, DecodingMode, DiffusionConfig, StageConfig

if TYPE_CHECKING:
    import torch

    from nld_train.config.plan import StagePlan
    from nld_train.data.collate import Samples
    from nld_train.model.rotary import RotaryEmbedding
    from nld_train.training.metrics.jsonl import Record


@dataclass(frozen=True)
class EvaluatedVariant:
    """A decode mode with its settings, in which the decoding hook decodes held-out prompts during a stage.

    Attributes:
        name: under which its figures are recorded.
        mode: the decode mode.
        block_length: tokens of a block (in the training configuration the same quantity is called `block_size`).
        adapter: whether the drafter adapter is on while drafting.
    """

    name: str
    mode: DecodingMode
    block_length: int
    adapter: bool = False


class AnswerBlocks(NamedTuple):
    """How the noisy stream of a stage is made of the answers of conversations; see `masking.noisy_stream`."""

    block_size: int
    blocks: Literal["answer", "document"]
    fill: bool


class StageTrainer(ABC):
    """Trains the model in one stage of a run, on one process."""

    def prepare_model(self, model: list[Any]) -> list[Any]:
        """The model as this stage trains it; called before the optimizer is built.

        Args:
            model: this rank's chunks, wrapped or, in the first stage, not.

        Returns:
            The same, or changed chunks without wrappers.
        """
        return model

    @property
    def collate(self) -> Callable[[list[dict[str, Any]]], Any]:
        """Makes a micro-batch of samples as of `data.samples`, in the processes of the data loader.

        It is sent to them, so it must be picklable, and should import nothing of `nld_train.training`. On CUDA the
        micro-batch is put in pinned memory there, by its own method `pin_memory` if it is no tensor or collection of
        tensors. Here: each of the samples' tensors stacked.
        """
        from nld_train.data.collate import stack

        return stack

    @abstractmethod
    def step(self, model: list[Any], optimizer: Any, batches: list[Any]) -> Record:
        """One optimizer step; returns the fields of the step's record that this kind measures.

        Every kind has `loss`, `ar_loss` and `diffusion_loss` (None where it has no such term) and `grad_norm`.

        Args:
            model: this rank's chunks, wrapped.
            optimizer: Megatron's.
            batches: this rank's micro-batches, made by `collate`.

        Raises:
            NonFiniteError: on every rank, before the update, if a loss or the gradient is not finite.
        """

    def held_out_losses(self, model: list[Any], samples: list[Samples]) -> tuple[float, float]:
        """Losses in nats per token on held-out samples under one noise level: AR, and diffusion (0 without noise).

        The samples are stacked, by micro-batch.

        Called for each level of `StageKind.validation_levels`. The same on every rank; changes nothing in training.
        """
        raise NotImplementedError("a kind with validation levels measures their losses")


class StageKind(ABC):
    """One kind of stage.

    Attributes:
        name: the value of `stages.NAME.kind`.
        data: the kind of token sets that it is trained on: `text`, `conversations`, or `any`.
        trains_adapter: whether it trains an adapter, which the attention backend has to support.
        planned: whether the planner can count it, with the measured utilisation of an AR step, or of a joint one where
            there is a noisy stream.
        sets_noisy_length: whether `noisy_length` of a stage is read.
    """

    name: ClassVar[str]
    data: ClassVar[Literal["text", "conversations", "any"]] = "text"
    trains_adapter: ClassVar[bool] = False
    planned: ClassVar[bool] = False
    sets_noisy_length: ClassVar[bool] = False

    def for_stage(self, stage: StageConfig) -> StageKind:
        """This kind with the settings of a stage on which the lengths of its streams depend."""
        del stage
        return self

    def noisy_length(self, length: int) -> int:
        """Tokens of the noisy stream of samples of `length` tokens, which passes through the model before the clean one
        (`docs/method.md`, "Streams and visibility"); 0 where samples carry no noise."""
        del length
        return 0

    def answer_blocks(self, config: Config, stage: StageConfig) -> AnswerBlocks | None:
        """The blocks of answers to which `stages.NAME.noisy_length: auto` is fitted; None where it is not."""
        del config, stage
        return None

    @property
    def noisy_stream(self) -> bool:
        """Whether samples carry a noisy stream."""
        return self.noisy_length(1) > 0

    def check_stage(self, key: str, stage: StageConfig) -> None:
        """Raise `UserError` for the first setting of a stage that contradicts this kind.

        Args:
            key: of the stage, `stages.NAME`.
            stage: its settings. Their ranges have been checked.
        """
        valid = f"must be drafter in a stage with an adapter; set {key}.kind=drafter or {key}.adapter=null"
        refuse_unless(stage.adapter is None, f"{key}.kind", stage.kind, valid)
        valid = f"must be auto with kind={stage.kind}: only sft and drafter stages set the length of their noisy stream"
        own = self.sets_noisy_length or stage.noisy_length == "auto"
        refuse_unless(own, f"{key}.noisy_length", stage.noisy_length, valid)
        if stage.lora is not None:
            _check_targets(f"{key}.lora.targets", stage.lora.targets)

    def check_run(self, config: Config, name: str) -> None:
        """Raise `UserError` for what a run must not combine with a stage of this kind.

        Args:
            config: the run.
            name: of the stage, one of `config.run.stages`.
        """
        del config, name

    @abstractmethod
    def stream_lengths(self, length: int) -> tuple[int, ...]:
        """Positions that pass through the model at a time, of one sample of `length` tokens; one for each length."""

    @abstractmethod
    def visible_pairs(self, length: int, diffusion: DiffusionConfig) -> int:
        """Pairs of query and key in a pass over one document of `length` tokens, with its blocks and clean stream."""

    @abstractmethod
    def head_rows(self, length: int, diffusion: DiffusionConfig) -> float:
        """Expected rows of logits that the loss of one sample of `length` tokens needs."""

    def sample_flops(self, config: Config, stage: StageConfig) -> float:
        """Expected floating-point operations of one sample, one document long (`docs/method.md`, "Stages")."""
        length, diffusion = config.batch.sequence_length, config.diffusion
        pairs, rows = self.visible_pairs(length, diffusion), self.head_rows(length, diffusion)
        positions = max(self.stream_lengths(length))
        if stage.lora is not None or stage.trained_weights == "projector":
            return frozen_flops(config.model, stage.lora, positions, pairs, rows)
        return training_flops(config.model, positions, pairs, rows)

    def objective(self, stage: StageConfig) -> str:
        """The objective in a few characters, for a table of stages: the weight of the diffusion loss, a LoRA's rank."""
        notes = [] if stage.ar_weight == 1 else [f"AR loss x {stage.ar_weight:g}"]
        notes += [] if stage.lora is None else [f"LoRA of rank {stage.lora.rank}"]
        return f"{stage.alpha:g}" + (f" ({', '.join(notes)})" if notes else "")

    def validation_levels(self, config: Config) -> tuple[float | None, ...]:
        """Noise levels at which held-out losses are measured; None: without noise. Empty for no validation."""
        del config
        return ()

    def decode_variants(self, config: Config, stage: StageConfig) -> tuple[EvaluatedVariant, ...]:
        """The variants that the decoding hook decodes, the AR mode first; empty where weights cannot fill in masks."""
        del config, stage
        return ()

    @abstractmethod
    def make_trainer(
        self, config: Config, plan: StagePlan, rotary: RotaryEmbedding, dtype: torch.dtype, device: torch.device
    ) -> StageTrainer:
        """The trainer of a stage on this process.

        Args:
            config: the run.
            plan: of the stage.
            rotary: the rotary embedding of the model.
            dtype: of activations.
            device: of this process.
        """


def _check_targets(key: str, targets: tuple[str, ...]) -> None:
    listed = f"[{','.join(targets)}]"
    refuse_unless(len(targets) > 0, key, listed, f"must name at least one of {', '.join(LORA_TARGETS)}")
    refuse_unless(len(set(targets)) == len(targets), key, listed, "must name each layer only once")
