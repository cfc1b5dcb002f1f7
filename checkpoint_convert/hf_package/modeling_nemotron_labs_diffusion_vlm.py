"""The vision-language variant: texts with pictures in, text out."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from checkpoint_convert.hf_package.cached_engine import Vision
from checkpoint_convert.hf_package.configuration_nemotron_labs_diffusion_vlm import NemotronLabsDiffusionVLMConfig
from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from checkpoint_convert.hf_package.vision_encoder import VisionLanguageEncoder
from nld_train.model.vision.picture_prompt import ImageTokens

# Of tokens that no loss is computed for, as everywhere in transformers.
_NO_LABEL = -100


def _with_arguments_of_text_model(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A `forward` that names all its arguments: `generate` and `Trainer` of transformers look for theirs there."""
    text = signature(NemotronLabsDiffusionModel.forward).parameters.values()
    own = [each for each in signature(forward).parameters.values() if each.kind is Parameter.KEYWORD_ONLY]
    forward.__signature__ = Signature([*text, *own])  # type: ignore[attr-defined]
    return forward


class NemotronLabsDiffusionVLMModel(NemotronLabsDiffusionModel):
    """The text model, whose `encoder` has a vision tower and a projector too."""

    config_class = NemotronLabsDiffusionVLMConfig
    encoder_class = VisionLanguageEncoder
    encoder: VisionLanguageEncoder
    input_modalities = ("image", "text")
    _no_split_modules = ["Layer", "PixtralAttentionLayer"]  # noqa: RUF012

    @_with_arguments_of_text_model
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *arguments: Any,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        **named: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of whole texts with pictures; see the text model's `forward` for the other arguments.

        Args:
            input_ids: int64 `[b, L]`, with `config.image_token_index` where a feature of a picture is.
            attention_mask: of the text model; `generate` of transformers 5.17 looks for its name here.
            *arguments: of the text model.
            pixel_values: `[n, 3, H, W]`, the pictures of all texts, from the first text to the last, as the Pixtral
                processor gives them; None for none.
            image_sizes: int64 `[n, 2]`, their heights and widths without padding; None for `H` and `W`.
            **named: of the text model.

        Raises:
            ValueError: the pictures have more or fewer features than the texts have `[IMG]` tokens, which have no
                labels, or are given in mode `block`.
        """
        if pixel_values is None or len(pixel_values) == 0:
            return super().forward(input_ids, attention_mask, *arguments, **named)
        if input_ids is None or arguments:
            raise ValueError("pixel_values: needs input_ids, and all other arguments by name")
        if named.get("mode", "causal") != "causal":
            raise ValueError("pixel_values: pictures go with mode 'causal'")
        labels = named.get("labels")
        if labels is not None and bool((labels[input_ids == self.config.image_token_index] != _NO_LABEL).any()):
            raise ValueError(f"labels: [IMG] tokens are neither predicted nor masked; give them {_NO_LABEL}")
        embeddings = self.embeddings_with_pictures(input_ids, pixel_values, image_sizes)
        ids = None if labels is None else input_ids
        return super().forward(ids, attention_mask, inputs_embeds=embeddings, **named)

    def _vision(self) -> Vision:
        """See the text model's: what `generate` computes features of pictures with."""
        tower, encoder = self.config.vision_config, self.encoder
        tokens = ImageTokens(self.config.image_token_index, tower.patch_size * self.config.spatial_merge_size)
        return Vision(tokens, lambda pictures: encoder.picture_features(pictures.pixel_values, pictures.sizes))

    def embeddings_with_pictures(
        self, input_ids: Tensor, pixel_values: Tensor, image_sizes: Tensor | None = None
    ) -> Tensor:
        """Embeddings `[b, L, h]` of texts, those of `[IMG]` tokens from pictures; arguments as of `forward`.

        Raises:
            ValueError: the pictures have more or fewer features than the texts have `[IMG]` tokens.
        """
        embeddings = self.encoder.embed_tokens(input_ids)
        features = self.encoder.picture_features(pixel_values, image_sizes).to(embeddings)
        seen = input_ids == self.config.image_token_index
        if int(seen.sum()) != len(features):
            raise ValueError(
                f"input_ids: has {int(seen.sum())} [IMG] tokens, but {len(pixel_values)} pictures need {len(features)}"
            )
        return embeddings.masked_scatter(seen[..., None], features)


__all__ = ["NemotronLabsDiffusionVLMModel"]
