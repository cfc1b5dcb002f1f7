"""Configuration of a vision-language model that decodes autoregressively and by block diffusion."""

from typing import Any

from transformers import Mistral3Config, PixtralVisionConfig

from checkpoint_convert.hf_package.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig


class NemotronLabsDiffusionVLMConfig(NemotronLabsDiffusionConfig):
    """The text model's configuration, with those of the vision tower and of the projector, as in `Mistral3Config`.

    Attributes:
        vision_config: of the tower, a `PixtralVisionConfig`.
        image_token_index: the token [IMG], whose embedding is a feature of a picture.
        image_break_token_id: the token [IMG_BREAK], which ends a row of [IMG].
        image_end_token_id: the token [IMG_END], which ends a picture.
        spatial_merge_size: edge of the square of patches that become one token.
        projector_hidden_act: activation between the projector's linear layers.
        multimodal_projector_bias: whether these have biases.
        vision_feature_layer: only -1, the tower's last layer, is supported.
    """

    model_type = "nemotron_labs_diffusion_vlm"
    sub_configs = {"vision_config": PixtralVisionConfig}  # noqa: RUF012
    attribute_map = {"image_token_id": "image_token_index"}  # noqa: RUF012

    vision_config: Any = None
    image_token_index: int = 10
    image_break_token_id: int = 12
    image_end_token_id: int = 13
    spatial_merge_size: int = 2
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = False
    vision_feature_layer: int = -1

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PixtralVisionConfig):
            self.vision_config = PixtralVisionConfig(**(self.vision_config or {}))
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        super()._check()
        if self.vision_feature_layer != -1:
            raise ValueError(f"vision_feature_layer: {self.vision_feature_layer} is not supported; only -1 is")

    def projector(self) -> Mistral3Config:
        """The configuration from which transformers builds the projector."""
        return Mistral3Config(
            vision_config=self.vision_config.to_dict(),
            text_config={
                "model_type": "ministral3",
                "hidden_size": self.hidden_size,
                "rms_norm_eps": self.rms_norm_eps,
            },
            spatial_merge_size=self.spatial_merge_size,
            projector_hidden_act=self.projector_hidden_act,
            multimodal_projector_bias=self.multimodal_projector_bias,
            vision_feature_layer=self.vision_feature_layer,
        )


__all__ = ["NemotronLabsDiffusionVLMConfig"]
