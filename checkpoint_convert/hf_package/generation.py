"""The generate methods: thin wrappers of the decoder, which has the algorithms."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.utils import cached_file

from checkpoint_convert.hf_package.cached_engine import CachedEngine
from checkpoint_convert.hf_package.calls import CallSettings, as_tuple, diffusion_policy, joined, prompts_of
from checkpoint_convert.hf_package.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig
from checkpoint_convert.hf_package.drafter import DIRECTORY, FILES, Drafter
from checkpoint_convert.hf_package.encoder import Encoder
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import Mode
from nld_train.decoding.algorithms.outputs import DecodeResult, Observer
from nld_train.decoding.policies.commit import CommitPolicy


class GenerationMethods:
    """AR, diffusion and self-speculation for a model with `config`, `encoder` and `diffusion_head`."""

    config: NemotronLabsDiffusionConfig
    encoder: Encoder
    diffusion_head: nn.Linear
    training: bool
    eval: Any
    train: Any
    _drafter: Drafter | None = None
    _stop_tokens: tuple[int, ...] | None = None

    def ar_generate(
        self, input_ids: Tensor, max_new_tokens: int = 128, eos_token_id: Any = None, **settings: Any
    ) -> tuple[Tensor, int]:
        """Continues prompts one token per forward.

        Args:
            input_ids: int64 `[b, P]`.
            max_new_tokens: maximum of new tokens per sequence.
            eos_token_id: id or ids that end a sequence; None for those of the generation config.
            **settings: `calls.CallSettings` by name: `attention_mask`, `temperature`, `top_k`, `top_p`, `seed`,
                `stop_strings`, `tokenizer`.

        Returns:
            int64 `[b, P + N]`, the input followed by new tokens and padding; and the forward calls of the batch
            without its prefill.
        """
        result = self.decode(input_ids, "ar", max_new_tokens, eos_token_id=eos_token_id, **settings)
        return self._joined(input_ids, result), result.forwards

    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 128,
        block_length: int | None = None,
        threshold: float | None = None,
        eos_token_id: Any = None,
        steps: int | None = None,
        **settings: Any,
    ) -> tuple[Tensor, int]:
        """Continues prompts by block diffusion.

        Args:
            input_ids: int64 `[b, P]`.
            max_new_tokens: maximum of new tokens per sequence.
            block_length: tokens per block, called `block_size` in training; None for `config.block_size`.
            threshold: a pass commits every position of at least this confidence, and always the most confident one.
                0.9 if neither this nor `steps` is given.
            eos_token_id: id or ids that end a sequence; None for those of the generation config.
            steps: instead of a threshold, denoising passes for all `max_new_tokens`, at least one per block. They are
                divided evenly, with the remainder in the first blocks; no block takes more passes than it has masks.
            **settings: as in `ar_generate`.

        Returns:
            As `ar_generate`.
        """
        length = self._block_length(block_length)
        prompts = prompts_of(input_ids, settings.get("attention_mask"))
        policy = diffusion_policy(threshold, steps, max_new_tokens, length, prompts)
        settings = {"block_length": length, "eos_token_id": eos_token_id, **settings}
        result = self.decode(input_ids, "diffusion", max_new_tokens, policy=policy, **settings)
        return self._joined(input_ids, result), result.forwards

    def linear_spec_generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 128,
        block_length: int | None = None,
        eos_token_id: Any = None,
        adapter: bool | None = None,
        **settings: Any,
    ) -> tuple[Tensor, int]:
        """Continues prompts by linear self-speculation; greedy output equals `ar_generate`, token for token.

        Args:
            input_ids: int64 `[b, P]`.
            max_new_tokens: maximum of new tokens per sequence.
            block_length: tokens per block, called `block_size` in training; None for `config.block_size`.
            eos_token_id: id or ids that end a sequence; None for those of the generation config.
            adapter: draft with the adapter in `linear_spec_lora/`; None drafts with it if there is one.
            **settings: as in `ar_generate`.

        Returns:
            As `ar_generate`, but the forward calls include the prefill.
        """
        adapter = self.drafter() is not None if adapter is None else adapter
        settings = {"block_length": block_length, "eos_token_id": eos_token_id, "adapter": adapter, **settings}
        result = self.decode(input_ids, "linear", max_new_tokens, **settings)
        return self._joined(input_ids, result), result.forwards + result.prefill

    def quadratic_spec_generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 128,
        block_length: int | None = None,
        eos_token_id: Any = None,
        ar_weight: float = 1.0,
        **settings: Any,
    ) -> tuple[Tensor, int]:
        """Continues prompts by quadratic self-speculation, one forward per cycle.

        Args:
            input_ids: int64 `[b, P]`.
            max_new_tokens: maximum of new tokens per sequence.
            block_length: drafts per cycle; None for `config.block_size`.
            eos_token_id: id or ids that end a sequence; None for those of the generation config.
            ar_weight: weight of the AR prediction in the ensemble of both predictions that accepts drafts and gives the
                bonus token; only 1 is lossless.
            **settings: as in `ar_generate`.

        Returns:
            As `ar_generate`, but the forward calls include the prefill.
        """
        settings = {"block_length": block_length, "eos_token_id": eos_token_id, "ar_weight": ar_weight, **settings}
        result = self.decode(input_ids, "quadratic", max_new_tokens, **settings)
        return self._joined(input_ids, result), result.forwards + result.prefill

    def decode(
        self,
        input_ids: Tensor,
        mode: Mode,
        max_new_tokens: int,
        block_length: int | None = None,
        policy: CommitPolicy | None = None,
        observer: Observer | None = None,
        adapter: bool = False,
        ar_weight: float = 1.0,
        **settings: Any,
    ) -> DecodeResult:
        """Decodes in any mode with any commit policy, and returns all statistics.

        Raises:
            ValueError: a value out of its range, or a combination that cannot be decoded; the message has one line.
        """
        call = CallSettings(**settings)
        options = call.options(
            max_new_tokens,
            self._block_length(block_length),
            self.stop_tokens(),
            adapter=adapter,
            ar_weight=ar_weight,
        )
        prompts = prompts_of(input_ids, call.attention_mask)
        engine = CachedEngine(self.encoder, self.diffusion_head, self.drafter() if adapter else None)
        with self._evaluating():
            return decode(engine, prompts, mode, options, policy, observer)

    def drafter(self) -> Drafter | None:
        """The adapter in `linear_spec_lora/` of the model's directory, loaded on first use; None if there is none."""
        if self._drafter is None and (directory := self._adapter_directory()) is not None:
            self.load_drafter(directory)
        return self._drafter

    def load_drafter(self, directory: str | Path) -> None:
        """Loads the drafter adapter from a directory in PEFT's format, in place of any other."""
        self._drafter = Drafter(self.encoder, directory)

    def save_drafter(self, save_directory: str | Path) -> None:
        """Copies the files of the drafter adapter, if there is one, into `linear_spec_lora/` of a directory."""
        source = self._adapter_directory() if self._drafter is None else self._drafter.directory
        target = Path(save_directory, DIRECTORY)
        if source is None or target.resolve() == source.resolve():
            return
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(source / name, target / name)

    def _adapter_directory(self) -> Path | None:
        if not self.config.name_or_path:
            return None
        try:
            found = [cached_file(self.config.name_or_path, f"{DIRECTORY}/{name}") for name in FILES]
        except OSError:
            return None
        return Path(found[0]).parent

    def stop_tokens(self) -> tuple[int, ...]:
        """Stop tokens of the generation config, or if that has none, of the config."""
        if self._stop_tokens is None:
            generation = self._generation_config()
            named = () if generation is None else as_tuple(generation.eos_token_id)
            self._stop_tokens = named or as_tuple(self.config.eos_token_id)
        return self._stop_tokens

    def _generation_config(self) -> GenerationConfig | None:
        try:
            return GenerationConfig.from_pretrained(self.config.name_or_path) if self.config.name_or_path else None
        except OSError:
            return None

    def _block_length(self, block_length: int | None) -> int:
        length = self.config.block_size if block_length is None else block_length
        if length < 1:
            raise ValueError(f"block_length: {length} is not 1 or more")
        return length

    def _joined(self, input_ids: Tensor, result: DecodeResult) -> Tensor:
        padding = self.config.pad_token_id
        return joined(input_ids, result.token_ids, next(iter(self.stop_tokens()), 0) if padding is None else padding)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode while decoding: no dropout, no recomputation. The previous mode is restored."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)
