"""What a stage trains: some weights of the model, or a LoRA beside frozen ones."""

from __future__ import annotations

from dataclasses import dataclass

from nld_train.config.schema import LoraConfig, StageConfig, TrainedWeights
from nld_train.config.vision_tensors import trained_weights


@dataclass(frozen=True)
class Trained:
    """What has gradients, buffers for them and optimizer state.

    Attributes:
        weights: of the model; with a LoRA `text`, whose tower is frozen as well.
        lora: what is trained instead of the text model's own weights.
    """

    weights: TrainedWeights = "all"
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        assert self.lora is None or self.weights == "text", "a LoRA leaves the vision tower frozen"

    @classmethod
    def of(cls, stage: StageConfig) -> Trained:
        """What a stage trains."""
        return cls(trained_weights(stage), stage.lora)

    @property
    def freezes_text(self) -> bool:
        """Whether the text model's own weights have no gradients."""
        return self.lora is not None or self.weights == "projector"


ALL = Trained()
