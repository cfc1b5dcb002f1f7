"""Opens an export for decoding, from weights that `HuggingFaceWeights` has checked.

Neither `transformers`' loading nor the directory's code takes part. Of `config.json` only what the import reads has an
effect: no attention kernel, no quantisation, no pickled weights and no file of another directory.
"""

from __future__ import annotations

import torch
from transformers.models.ministral3.modeling_ministral3 import Ministral3RotaryEmbedding

from checkpoint_convert.export_config import decoder_config, vision_keys
from checkpoint_convert.hf_package.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig
from checkpoint_convert.hf_package.configuration_nemotron_labs_diffusion_vlm import NemotronLabsDiffusionVLMConfig
from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion_vlm import NemotronLabsDiffusionVLMModel
from checkpoint_convert.hugging_face import HuggingFaceWeights
from checkpoint_convert.mapping import naming_of_format, part_shape, tensors
from checkpoint_convert.source_config import clean_stream
from nld_train.errors import UserError
from nld_train.model.finite import is_finite

_ATTENTION = "sdpa"
_TEXT = NemotronLabsDiffusionConfig, NemotronLabsDiffusionModel
_VISION = NemotronLabsDiffusionVLMConfig, NemotronLabsDiffusionVLMModel


@torch.no_grad()
def load_export(
    weights: HuggingFaceWeights, device: torch.device, dtype: torch.dtype | None = None
) -> NemotronLabsDiffusionModel:
    """The exported package's model, from this checkout, with an export's weights.

    Args:
        weights: of the export.
        device: of the model.
        dtype: of the model; None keeps the type of each tensor.

    Raises:
        UserError: a tensor contains NaN or infinity.
    """
    seen = clean_stream(weights.source.directory / "config.json", weights.source.outer)
    vision = weights.model.vision is not None
    config_class, model_class = _VISION if vision else _TEXT
    config = config_class(
        **decoder_config(weights.model),
        **vision_keys(weights.model),
        mask_token_id=weights.model.mask_token_id,
        tie_word_embeddings=False,
        ar_loss_weight=float(seen.ar),
        **({} if seen.block is None else {"dlm_clean": "block", "block_size": seen.block}),
    )
    with torch.device("meta"):
        model = model_class._from_config(config, attn_implementation=_ATTENTION)
    naming = naming_of_format("nld", weights.model)
    state = {}
    for tensor in tensors(weights.model):
        rows = weights.rows(tensor.name, 0, part_shape(tensor.part, weights.model)[0])
        name = naming.full(tensor.name)
        if not is_finite(rows):
            raise UserError(
                f"{weights.source.directory}: tensor {name} contains NaN or infinity; decode weights that are finite"
            )
        # A copy: the view of a file must not be written to.
        state[name] = rows.to(device, dtype or rows.dtype, copy=True)
    model.load_state_dict(state, assign=True)
    # Frequencies are in no file, and were made on the meta device.
    model.encoder.rotary_emb = Ministral3RotaryEmbedding(config).to(device)
    if vision:
        tower = model.encoder.vision_tower
        tower.patch_positional_embedding = type(tower.patch_positional_embedding)(tower.config).to(device)
    return model.eval()
