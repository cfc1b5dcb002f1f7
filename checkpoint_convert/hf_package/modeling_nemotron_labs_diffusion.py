"""A Ministral3 decoder that predicts autoregressively, by block diffusion, or both in one forward."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import find_adapter_config_file, is_peft_available

from checkpoint_convert.hf_package.attention import AttentionMask, Rule, prepare
from checkpoint_convert.hf_package.cached_forward import check_forward, encode_cached
from checkpoint_convert.hf_package.calls import as_tuple
from checkpoint_convert.hf_package.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig
from checkpoint_convert.hf_package.encoder import Encoder
from checkpoint_convert.hf_package.joint_loss import NoisyRows, joint_loss, term_weights
from checkpoint_convert.hf_package.padded_text import AnswerBlocks, Blocks, NoisyText, PaddedText
from checkpoint_convert.hf_package.transformers_generation import TransformersGeneration

# Arguments of `from_pretrained` that say where the files of a model are.
_OF_FILES = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
# The name of the KV cache in outputs: `cache` in transformers 5.24 and newer.
_CACHE = next(each.name for each in fields(CausalLMOutputWithPast) if each.name in ("cache", "past_key_values"))
# Attention functions with which vLLM and SGLang run models of `transformers`: they need keyword arguments of `forward`
# that the layers here do not pass on. vLLM does not ask for `_supports_attention_backend` alone.
_OF_SERVERS = ("vllm", "sglang")


class NemotronLabsDiffusionModel(TransformersGeneration, PreTrainedModel, GenerationMixin):
    """The model: `encoder` (embedding, layers, norm) and `diffusion_head`, one head for both modes."""

    config_class = NemotronLabsDiffusionConfig
    base_model_prefix = "encoder"
    encoder_class: type[Encoder] = Encoder
    # `Trainer` then passes `num_items_in_batch`, and does not divide the loss by the accumulation steps.
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    # Not `_supports_attention_backend`: see `_OF_SERVERS`.

    def __init__(self, config: NemotronLabsDiffusionConfig) -> None:
        """The model with random weights.

        Raises:
            ValueError: a server would run its layers, with attention functions of its own.
        """
        if config._attn_implementation in _OF_SERVERS:
            raise ValueError(
                f"attn_implementation: {config._attn_implementation!r} cannot run this class; `python serve.py` in its "
                "directory serves it, and vLLM and SGLang serve its plain Ministral3 export"
            )
        super().__init__(config)
        self.encoder = self.encoder_class(config)
        self.diffusion_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the token embedding."""
        self.encoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""
        return self.diffusion_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the head."""
        self.diffusion_head = new_embeddings

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **kwargs: Any) -> Any:
        """Loads the model as `transformers` does, with the LoRA beside its weights, if there is one.

        Raises:
            ImportError: it has a LoRA, and PEFT is not installed: `transformers` alone would leave it out.
        """
        if pretrained_model_name_or_path is not None and not is_peft_available():
            named = {name: kwargs[name] for name in _OF_FILES if kwargs.get(name) is not None}
            if find_adapter_config_file(pretrained_model_name_or_path, **named) is not None:
                raise ImportError(f"the LoRA of {pretrained_model_name_or_path} needs the package peft")
        return super().from_pretrained(pretrained_model_name_or_path, *arguments, **kwargs)

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **kwargs: Any) -> None:
        """Saves the model as `transformers` does, and the drafter adapter."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self.save_drafter(save_directory)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        mode: Literal["causal", "block"] = "causal",
        clean_input_ids: Tensor | None = None,
        block_length: int | None = None,
        generator: torch.Generator | None = None,
        num_items_in_batch: Tensor | int | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache: Cache | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of whole texts, and the joint loss with labels.

        Args:
            input_ids: int64 `[b, L]`. In mode `block` masked positions are `config.mask_token_id`.
            attention_mask: `[b, L]`, 0 at padding; None for none. With `past_key_values` `[b, past + L]`, or a prepared
                mask of four dimensions.
            position_ids: int64 `[b, L]` or `[1, L]`; where they do not grow by one, a new document begins, which does
                not see the previous one. None counts real tokens.
            past_key_values: cache of `transformers`, to which the keys and values of this text are appended; mode
                `causal` only, one document per row.
            inputs_embeds: `[b, L, h]` in place of `input_ids`, in mode `causal`. With labels beside them, as the
                embeddings of the clean stream.
            labels: int64 `[b, L]`, the tokens themselves, -100 where they are neither predicted nor masked (prompts,
                padding). The loss is `ar_loss_weight * L_AR + dlm_loss_weight * L_diff`: next-token prediction on
                `input_ids`, and a second, noisy stream with fresh noise in the same forward. Without prompts it repeats
                the clean one, and a document whose last token is the end token is filled up with end tokens to whole
                blocks. With prompts it has the blocks of the answers alone, the runs of tokens with labels, as
                `config.dlm_blocks` and `config.dlm_fill` say. Both are as in training. Mode `causal` only.
            use_cache: True begins a cache where there is none; no effect with labels.
            logits_to_keep: compute logits of this many last tokens, or at these indices; 0 for all.
            mode: `causal` is an ordinary AR forward: logits at i predict token i + 1. In `block` logits at i predict
                token i. With `clean_input_ids` every block of `input_ids` sees itself in both directions and the
                clean text before it, as in training. Without `clean_input_ids` the last `block_length` tokens of each
                row see all tokens, and the tokens before them are causal, as in a denoising pass of decoding; only the
                logits of that block are meaningful.
            clean_input_ids: int64 `[b, L]`, the clean stream of mode `block`.
            block_length: tokens per block in mode `block`, called `block_size` in training; None for
                `config.block_size`.
            generator: CPU generator of the noise; None for torch's global one.
            num_items_in_batch: labels other than -100 in the whole optimizer step, from `Trainer`.
            token_type_ids: ignored; some tokenizers return them.
            output_hidden_states: also return the embeddings and the output of each layer, the last one normalised.
            output_attentions: refused; the attention functions here return no weights.
            return_dict: False returns a tuple.
            cache: the name of `past_key_values` in transformers 5.24 and newer.

        Returns:
            `logits` `[b, L, V]`, with labels `loss`, and with a cache `past_key_values`.

        Raises:
            ValueError: arguments that contradict each other, mode `causal` without labels of a model with
                `config.dlm_clean` "block", or a mask that the attention implementation cannot take.
        """
        past_key_values = past_key_values if cache is None else cache
        check_forward(
            mode, input_ids, inputs_embeds, labels, past_key_values, clean_input_ids, block_length, output_attentions
        )
        if self.config.dlm_clean == "block" and mode == "causal" and labels is None:
            raise ValueError("mode: a model with dlm_clean 'block' has no causal forward; use mode 'block'")
        block_length = self.config.block_size if block_length is None else block_length
        states: list[Tensor] | None = [] if output_hidden_states else None
        loss = None
        if labels is not None:
            assert input_ids is not None
            text = PaddedText.of(attention_mask, position_ids, input_ids)
            embeddings = self._embeddings(input_ids, inputs_embeds)
            loss, logits = self._with_loss(
                input_ids, embeddings, labels, text, block_length, generator, num_items_in_batch
            )
        else:
            if use_cache and past_key_values is None and mode == "causal":
                past_key_values = DynamicCache(config=self.config)
            if past_key_values is not None:
                embeddings = self._embeddings(input_ids, inputs_embeds)
                hidden = encode_cached(self.encoder, embeddings, attention_mask, position_ids, past_key_values, states)
            else:
                hidden = self._hidden(
                    input_ids, inputs_embeds, attention_mask, position_ids, mode, clean_input_ids, block_length, states
                )
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.diffusion_head(hidden[:, kept])
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{_CACHE: past_key_values},
            hidden_states=None if states is None else tuple(states),
        )
        return output.to_tuple() if return_dict is False else output

    def _embeddings(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        return self.encoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def _hidden(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        mode: str,
        clean_input_ids: Tensor | None,
        block_length: int,
        states: list[Tensor] | None,
    ) -> Tensor:
        """Hidden states `[b, L, h]` without a cache."""
        tokens = inputs_embeds[..., 0] if input_ids is None and inputs_embeds is not None else input_ids
        assert tokens is not None
        text = PaddedText.of(attention_mask, position_ids, tokens)
        if self.config.dlm_clean == "block":
            text = text.with_whole_blocks(self.config.block_size if clean_input_ids is None else block_length)
        if mode == "block" and clean_input_ids is not None:
            streams = NoisyText.of(text, block_length).text
            clean = self.encoder.embed_tokens(clean_input_ids)
            return self._encode_two_streams(tokens, clean, streams, states)[:, : tokens.shape[1]]
        block = mode == "block"
        mask = self._mask(text, text.last_block_rule(block_length)) if block else self._causal_mask(text)
        return self.encoder(self._embeddings(input_ids, inputs_embeds), text.layout.positions, mask, states=states)

    def _with_loss(
        self,
        input_ids: Tensor,
        embeddings: Tensor,
        labels: Tensor,
        text: PaddedText,
        block_length: int,
        generator: torch.Generator | None,
        num_items_in_batch: Tensor | int | None,
    ) -> tuple[Tensor, Tensor]:
        """The joint loss, and the logits `[b, L, V]` of the clean stream, which has these embeddings."""
        config, noisy = self.config, None
        weights = term_weights(config.ar_loss_weight, config.dlm_loss_weight)
        if weights.diffusion:
            blocks: Blocks = "document" if config.dlm_blocks == "document" else "answer"
            settings = AnswerBlocks(block_length, blocks, config.dlm_fill, config.dlm_clean == "block")
            ends = as_tuple(config.eos_token_id), self.stop_tokens()
            noisy = NoisyRows.of(input_ids, labels, text, settings, *ends, generator)
            tokens = torch.where(noisy.noise.masked, config.mask_token_id, noisy.tokens)
            hidden = self._encode_two_streams(tokens, embeddings, noisy.text)
        else:
            hidden = self.encoder(embeddings, text.layout.positions, self._causal_mask(text))
        logits = self.diffusion_head(hidden[:, -input_ids.shape[1] :])
        loss = joint_loss(self.diffusion_head, hidden, logits, labels, text, noisy, weights, num_items_in_batch)
        return loss, logits

    def _encode_two_streams(
        self, noisy: Tensor, clean: Tensor, streams: PaddedText, states: list[Tensor] | None = None
    ) -> Tensor:
        """Hidden states `[b, N + L, h]` of `[noisy | clean]`, from ids `[b, N]` and embeddings `[b, L, h]`."""
        mask = self._mask(streams, streams.rule())
        embeddings = torch.cat([self.encoder.embed_tokens(noisy), clean], 1)
        return self.encoder(embeddings, streams.layout.stacked_positions(), mask, states=states)

    def _causal_mask(self, text: PaddedText) -> AttentionMask:
        implementation = self.config._attn_implementation
        if implementation.startswith("flash") and not bool(text.layout.documents.any()):
            return AttentionMask(None if bool(text.real.all()) else text.real.long(), causal=True)
        if implementation == "sdpa" and text.plain:
            return AttentionMask(None, causal=True)
        return self._mask(text, text.rule())

    def _mask(self, text: PaddedText, rule: Rule) -> AttentionMask:
        rows, length = text.real.shape
        weight = self.encoder.embed_tokens.weight
        return prepare(self.config._attn_implementation, rule, (rows, length, length), text.real.device, weight.dtype)


__all__ = ["NemotronLabsDiffusionModel"]
