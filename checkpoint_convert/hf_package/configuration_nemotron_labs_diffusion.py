"""Configuration of a language model that decodes autoregressively and by block diffusion."""

from typing import Any

from transformers.models.ministral3.configuration_ministral3 import Ministral3Config


class NemotronLabsDiffusionConfig(Ministral3Config):
    """Ministral3's configuration with the settings of diffusion.

    Attributes:
        mask_token_id: the token of the vocabulary that replaces masked tokens.
        block_size: tokens per block in training, and the default of `block_length` in decoding.
        dlm_paradigm: attention inside a block that is denoised; only "bidirectional" is supported.
        dlm_loss_weight: alpha, the weight of the diffusion loss; None is 1, as in released checkpoints.
        ar_loss_weight: the weight of the next-token loss; None is 1.
        dlm_blocks: from where the blocks of conversations are counted in training: the start of each "answer", or of
            the "document".
        dlm_fill: whether the last block of an answer is filled up with end tokens in training.
        dlm_clean: what the tokens of a text see of each other: "causal", the ones before them, or "block", also the
            rest of their own block, as in an ablation without a next-token loss, which only diffusion decodes.
    """

    model_type = "nemotron_labs_diffusion"

    mask_token_id: int = 100
    block_size: int = 32
    dlm_paradigm: str = "bidirectional"
    dlm_loss_weight: float | int | None = 0.3
    ar_loss_weight: float | int | None = 1.0
    dlm_blocks: str = "answer"
    dlm_fill: bool = True
    dlm_clean: str = "causal"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        """Refuses values that the model does not support.

        Raises:
            ValueError: naming the key and what would be valid.
        """
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(f"mask_token_id: {self.mask_token_id} is not in the vocabulary of {self.vocab_size}")
        if self.block_size < 1:
            raise ValueError(f"block_size: {self.block_size} is not 1 or more")
        if self.dlm_paradigm != "bidirectional":
            raise ValueError(f"dlm_paradigm: {self.dlm_paradigm!r} is not supported; only 'bidirectional' is")
        if self.dlm_blocks not in ("answer", "document"):
            raise ValueError(f"dlm_blocks: {self.dlm_blocks!r} is neither 'answer' nor 'document'")
        if self.dlm_clean not in ("causal", "block"):
            raise ValueError(f"dlm_clean: {self.dlm_clean!r} is neither 'causal' nor 'block'")
        if self.dlm_clean == "block" and self.ar_loss_weight != 0:
            raise ValueError(f"ar_loss_weight: {self.ar_loss_weight} must be 0 with dlm_clean 'block'")
        if self.sliding_window is not None:
            raise ValueError("sliding_window: this model has full attention only; use null")
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings: the head of this model is always a separate tensor; use false")


__all__ = ["NemotronLabsDiffusionConfig"]
