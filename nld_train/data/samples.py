"""Training and validation samples.

A sample is a pure function of its index in a stage's order. Data-parallel size, micro-batch size, worker count and
restarts decide which process reads it and when, never its content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from nld_train.config.schema import VALIDATION, Config, DiffusionConfig, Documents
from nld_train.config.stage_kinds import kind_of, running_kinds
from nld_train.data.manifest import is_chat_set
from nld_train.data.order import StageOrder, held_out_order
from nld_train.data.packed import PackedTokens
from nld_train.data.sample_sets import validation_sources
from nld_train.errors import UserError
from nld_train.masking.layout import clean_block_ends
from nld_train.masking.noise import Noise, RandomStream, draw_noise, uniform
from nld_train.masking.noisy_stream import NoisyStream, answer_stream, fit, last_tokens, noisy_stream

Sample = dict[str, Any]


@dataclass(frozen=True)
class SampleSettings:
    """Settings that turn tokens into a training sample.

    Attributes:
        stage: name of the stage; it keys the noise.
        seed: the run's seed.
        noisy_length: N, tokens of the noisy stream; 0 without one.
        documents: whether samples keep their document borders.
        diffusion: blocks and noise.
        global_size: samples per optimizer step.
        vocab_size: ids of the model.
        mask_token_id: the id that marks hidden tokens and so must not occur in the data.
        eos_token_id: the end token, with which the last block of a document or an answer is filled up.
        level: a fixed noise level in [0, 1] instead of a drawn one.
    """

    stage: str
    seed: int
    noisy_length: int
    documents: Documents
    diffusion: DiffusionConfig
    global_size: int
    vocab_size: int
    mask_token_id: int
    eos_token_id: int
    level: float | None = None


class TrainingSamples(Dataset[Sample]):
    """The samples of one stage by sample index: a map-style dataset of unlimited length.

    Args:
        order: of the stage.
        settings: of its samples.
        pictures: whether samples have the pictures of their text, as the vision tower takes them.
    """

    def __init__(self, order: StageOrder, settings: SampleSettings, pictures: bool = False) -> None:
        self.order = order
        self.settings = settings
        self.pictures = pictures

    def __getitem__(self, sample_index: int) -> Sample:
        """The sample at an index of the stage, from 0.

        Returns:
            `tokens` int64 `[L+1]`; `documents` int64 `[L+1]` (all 0 when borders are ignored); `supervised` bool `[L]`
            (row i predicts token i+1; False where that token belongs to another document, or to no answer of a
            conversation); `sample_index` int; for conversations `answers` bool `[L+1]`; and where there is a noisy
            stream, `noisy_tokens`, `blocks` and `begins` int64 `[N]` (`masking.noisy_stream`), `masked` bool `[N]`,
            `probability` float32 `[N]`, `maskable` bool `[N]`, and with `diffusion.clean=block` `clean_ends` int64
            `[L]` (`masking.layout.clean_block_ends`). With `pictures` a list of float32 `[3, height, width]`, in the
            order of their image tokens; it may be empty.

        Raises:
            UserError: the sample holds the mask token, or an id that the model does not have; or a picture is damaged.
        """
        chosen, index = self.order.locate(sample_index)
        packed = self.order.sets[chosen].read(index)
        self._check(packed.tokens, f"sample {index} of {self.order.sets[chosen].prefix}.bin")
        if self.settings.documents == "ignore":
            packed = packed._replace(documents=np.zeros_like(packed.documents))
        sample: dict[str, NDArray[Any]] = {
            "tokens": packed.tokens,
            "documents": packed.documents,
            "supervised": packed.documents[1:] == packed.documents[:-1],
        }
        if packed.answers is not None:
            sample |= {"answers": packed.answers, "supervised": sample["supervised"] & packed.answers[1:]}
        if self.settings.noisy_length:
            sample |= noisy_part(self.settings, sample_index, packed)
        found: Sample = {name: torch.from_numpy(array) for name, array in sample.items()} | {
            "sample_index": sample_index
        }
        if self.pictures:  # a function of the set alone, as the tokens are
            found["pictures"] = [torch.from_numpy(each) for each in self.order.sets[chosen].inputs_of(packed)]
        return found

    def _check(self, tokens: NDArray[np.int64], where: str) -> None:
        largest, smallest = int(tokens.max()), int(tokens.min())
        if largest >= self.settings.vocab_size or smallest < 0:
            raise UserError(
                f"{where} holds token id {largest if smallest >= 0 else smallest}, outside the model's "
                f"0..{self.settings.vocab_size - 1}: prepare the data with the model's tokenizer, or raise "
                "model.vocab_size"
            )
        if (tokens == self.settings.mask_token_id).any():
            raise UserError(
                f"{where} holds the mask token {self.settings.mask_token_id}, which must not occur in data: set "
                "model.mask_token_id to a reserved id, or prepare the data again with nld-data prepare"
            )


def draw_noisy_stream(settings: SampleSettings, sample_index: int, packed: PackedTokens) -> tuple[NoisyStream, Noise]:
    """The noisy stream of a sample, of N tokens, and its noise.

    Args:
        settings: of the samples.
        sample_index: index in the stage.
        packed: its tokens.
    """
    whole = _whole_stream(settings.diffusion, packed)
    order = uniform(settings.seed, settings.stage, sample_index, RandomStream.LEFT_OUT, len(packed.tokens) - 1)
    stream = fit(whole, settings.noisy_length, settings.diffusion.block_size, order)
    noise = draw_noise(
        settings.diffusion,
        settings.seed,
        settings.stage,
        sample_index,
        settings.global_size,
        stream.maskable,
        stream.blocks,
        level=settings.level,
    )
    return stream, noise


def _whole_stream(diffusion: DiffusionConfig, packed: PackedTokens) -> NoisyStream:
    """All blocks of a sample: of text, or of the answers in conversations."""
    documents, size = packed.documents, diffusion.block_size
    if packed.answers is None:
        return noisy_stream(documents[:-1], last_tokens(documents), size)
    return answer_stream(documents[:-1], packed.answers[:-1], size, diffusion.blocks, diffusion.fill)


def noisy_part(settings: SampleSettings, sample_index: int, packed: PackedTokens) -> dict[str, NDArray[Any]]:
    """What a sample has for its noisy stream, under the names of `TrainingSamples`."""
    stream, noise = draw_noisy_stream(settings, sample_index, packed)
    return {
        **_clean_ends(settings.diffusion, packed),
        "noisy_tokens": stream.tokens(packed.tokens[:-1], settings.eos_token_id, settings.mask_token_id),
        "blocks": stream.blocks,
        "begins": stream.begins,
        "masked": noise.masked,
        "probability": noise.probability,
        "maskable": stream.maskable,
    }


def _clean_ends(diffusion: DiffusionConfig, packed: PackedTokens) -> dict[str, NDArray[Any]]:
    """The ends of the blocks of the clean stream, where its tokens see these whole."""
    if diffusion.clean == "causal":
        return {}
    answers = None if packed.answers is None or diffusion.blocks == "document" else packed.answers[:-1]
    return {"clean_ends": clean_block_ends(packed.documents[:-1], diffusion.block_size, answers)}


def training_samples(config: Config, stage: str, order: StageOrder, pictures: bool = True) -> TrainingSamples:
    """The samples of a training stage of `config`.

    Args:
        config: the run.
        stage: name of the stage.
        order: of the stage.
        pictures: False for a process without the vision tower, which needs none.
    """
    noisy_length = kind_of(config.stages[stage]).noisy_length(config.batch.sequence_length)
    settings = _settings(config, stage, noisy_length, level=None)
    return TrainingSamples(order, settings, pictures and config.model.vision is not None)


def validation_samples(config: Config, stage: str, level: float | None, pictures: bool = True) -> TrainingSamples:
    """Held-out samples at indices 0..n-1, the same at every validation.

    Args:
        config: the run.
        stage: name of the stage whose held-out data they are.
        level: the fixed noise level, or None for the AR loss alone (no noisy stream).
        pictures: False for a process without the vision tower, which needs none.

    Raises:
        UserError: a set cannot be read.
    """
    pictures = pictures and config.model.vision is not None
    noisy_length = 0 if level is None else kind_of(config.stages[stage]).noisy_length(config.batch.sequence_length)
    return TrainingSamples(held_out_order(config, stage), _settings(config, VALIDATION, noisy_length, level), pictures)


def refuse_repeated_samples(config: Config, chat: bool) -> None:
    """Refuses more validation samples than are held out for a stage: the first ones would be used twice.

    Args:
        config: the run.
        chat: whether the stages with held-out conversations are checked, whose packing has to exist, or the others.

    Raises:
        UserError: names the number of samples; or a set cannot be read.
    """
    if config.validation.every == 0:
        return
    for stage, kind in running_kinds(config).items():
        has_chat = any(is_chat_set(source.prefix) for source in validation_sources(config, stage))
        if kind.validation_levels(config) and has_chat == chat:
            _refuse_repeated_samples(config, stage)


def _refuse_repeated_samples(config: Config, stage: str) -> None:
    order, samples = held_out_order(config, stage), config.validation.samples
    if (most := order.samples_before_repetition(samples)) < samples:
        key = "data.validation" if config.stages[stage].validation is None else f"stages.{stage}.validation"
        raise UserError(
            f"validation.samples={samples}: must be at most {most}, after which {key} repeats a sample of "
            f"batch.sequence_length={config.batch.sequence_length} tokens; take fewer, or hold out more text"
        )


def _settings(config: Config, stage: str, noisy_length: int, level: float | None) -> SampleSettings:
    return SampleSettings(
        stage=stage,
        seed=config.run.seed,
        noisy_length=noisy_length,
        documents=config.data.documents,
        diffusion=config.diffusion,
        global_size=config.batch.global_size,
        vocab_size=config.model.vocab_size,
        mask_token_id=config.model.mask_token_id,
        eos_token_id=config.model.eos_token_id,
        level=level,
    )
