"""Training and validation samples, and the micro-batches of each optimizer step.

A sample is a pure function of its index in a stage's order. Data-parallel size, micro-batch size, worker count and
restarts decide which process reads it and when, never its content.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.util import get_temp_dir
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nld_train.config.schema import VALIDATION, Config, DiffusionConfig, Documents
from nld_train.config.stage_kinds import kind_of, running_kinds
from nld_train.data.manifest import is_chat_set
from nld_train.data.order import StageOrder, held_out_order
from nld_train.data.packed import PackedTokens
from nld_train.data.sample_sets import validation_sources
from nld_train.errors import UserError
from nld_train.masking.noise import Noise, RandomStream, draw_noise, uniform
from nld_train.masking.noisy_stream import NoisyStream, answer_stream, fit, last_tokens, noisy_stream
from nld_train.processes import exit_with_parent

Sample = dict[str, Any]
Batch = dict[str, Tensor]


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
    """

    def __init__(self, order: StageOrder, settings: SampleSettings) -> None:
        self.order = order
        self.settings = settings

    def __getitem__(self, sample_index: int) -> Sample:
        """The sample at an index of the stage, from 0.

        Returns:
            `tokens` int64 `[L+1]`; `documents` int64 `[L+1]` (all 0 when borders are ignored); `supervised` bool `[L]`
            (row i predicts token i+1; False where that token belongs to another document, or to no answer of a
            conversation); `sample_index` int; for conversations `answers` bool `[L+1]`; and where there is a noisy
            stream, `noisy_tokens`, `blocks` and `begins` int64 `[N]` (`masking.noisy_stream`), `masked` bool `[N]`,
            `probability` float32 `[N]`, `maskable` bool `[N]`.

        Raises:
            UserError: the sample holds the mask token, or an id that the model does not have.
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
        return {name: torch.from_numpy(array) for name, array in sample.items()} | {"sample_index": sample_index}

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
        "noisy_tokens": stream.tokens(packed.tokens[:-1], settings.eos_token_id, settings.mask_token_id),
        "blocks": stream.blocks,
        "begins": stream.begins,
        "masked": noise.masked,
        "probability": noise.probability,
        "maskable": stream.maskable,
    }


def training_samples(config: Config, stage: str, order: StageOrder) -> TrainingSamples:
    """The samples of a training stage of `config`."""
    noisy_length = kind_of(config.stages[stage]).noisy_length(config.batch.sequence_length)
    return TrainingSamples(order, _settings(config, stage, noisy_length, level=None))


def validation_samples(config: Config, stage: str, level: float | None) -> TrainingSamples:
    """Held-out samples at indices 0..n-1, the same at every validation.

    Args:
        config: the run.
        stage: name of the stage whose held-out data they are.
        level: the fixed noise level, or None for the AR loss alone (no noisy stream).

    Raises:
        UserError: a set cannot be read.
    """
    noisy_length = 0 if level is None else kind_of(config.stages[stage]).noisy_length(config.batch.sequence_length)
    return TrainingSamples(held_out_order(config, stage), _settings(config, VALIDATION, noisy_length, level))


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


def sample_indices(step: int, global_size: int, micro_size: int, rank: int, size: int) -> list[list[int]]:
    """The sample indices of one data-parallel rank in one optimizer step, by micro-batch.

    Micro-batch m of rank r has the indices `step * global_size + m * micro_size * size + r * micro_size + j`.
    """
    begin = step * global_size
    starts = range(begin + rank * micro_size, begin + global_size, micro_size * size)
    return [list(range(start, start + micro_size)) for start in starts]


class _MicroBatches(Dataset[Any]):
    """Micro-batches by their sample indices. A `UserError` is returned as an item: a worker process can send that."""

    def __init__(self, samples: Dataset[Sample]) -> None:
        self.samples = samples

    def __getitem__(self, indices: list[int]) -> Batch | UserError:
        try:
            return torch.utils.data.default_collate([self.samples[index] for index in indices])
        except UserError as error:
            return error


class _SampleIndicesByStep:
    """Sampler: lists of sample indices, one per micro-batch, step after step."""

    def __init__(self, steps: range, global_size: int, micro_size: int, rank: int, size: int) -> None:
        self.steps = steps
        self.layout = (global_size, micro_size, rank, size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield from sample_indices(step, *self.layout)


def batches(
    samples: Dataset[Sample],
    *,
    first_step: int,
    last_step: int,
    global_size: int,
    micro_size: int,
    rank: int = 0,
    size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[list[Batch]]:
    """The micro-batches of one data-parallel rank, step after step.

    Args:
        samples: the samples by sample index, e.g. `TrainingSamples`.
        first_step: first optimizer step of the stage to yield, from 0.
        last_step: the step at which to stop, not yielded itself.
        global_size: samples per optimizer step, a multiple of `micro_size * size`.
        micro_size: samples per micro-batch.
        rank: data-parallel rank.
        size: data-parallel size.
        workers: reader processes; 0 reads in this process.
        pin_memory: page-locked tensors for faster copies to a GPU; needs one.

    Yields:
        For each step a list of micro-batches: the samples' tensors stacked, `[micro_size, ...]`;
        `sample_index` is int64 `[micro_size]`.

    Raises:
        UserError: a sample is refused, or a reader process died.
    """
    if global_size % (micro_size * size):
        raise UserError(
            f"batch.global_size = {global_size} must be a multiple of batch.micro_size x data-parallel size = "
            f"{micro_size} x {size}"
        )
    per_step = global_size // (micro_size * size)
    loader = DataLoader(
        _MicroBatches(samples),
        sampler=_SampleIndicesByStep(range(first_step, last_step), global_size, micro_size, rank, size),
        batch_size=None,  # an item is a whole micro-batch already
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context=_worker_context() if workers else None,
        worker_init_fn=_start_worker if workers else None,
    )
    micro_batches = _without_errors(loader)
    for _ in range(first_step, last_step):
        yield [next(micro_batches) for _ in range(per_step)]


def _without_errors(loader: DataLoader[Any]) -> Iterator[Batch]:
    """The loader's micro-batches; an error of a worker becomes a `UserError`."""
    try:
        for item in loader:
            if isinstance(item, UserError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a data worker died (killed for memory?): give the job more memory, or lower data.workers (0 reads in the "
            "training process)"
        ) from error


def _start_worker(_worker: int) -> None:
    """Makes a worker end with the training process, whatever ends that, and ignore its first SIGTERM.

    Torch would end it on that, but launchers send one to all processes of a job (see `preload`). The second ends it:
    the training process sends it to a worker that does not exit by itself. The fork server and Python's resource
    tracker, which removes semaphores, end with the last process that holds their pipes, so with the last worker.
    """
    exit_with_parent()
    signal.signal(signal.SIGTERM, lambda number, _frame: signal.signal(number, signal.SIG_DFL) and None)


def _worker_context() -> Any:
    """Workers start from a fork server: the training process has CUDA and NCCL threads, which do not survive a fork,
    and a spawned worker would import Megatron-Core for seconds, which the server does once for all of them."""
    _start_resource_tracker()
    # Workers put their sockets into this process's folder, if there is one; the server removes it (`preload`).
    get_temp_dir()
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "nld_train.data.preload"])
    return context


def _start_resource_tracker() -> None:
    """Starts Python's resource tracker with SIGUSR1 blocked: it ignores SIGINT and SIGTERM by itself, but Slurm can
    send SIGUSR1 to all processes of a job, and without their tracker the fork server and its workers print errors."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
