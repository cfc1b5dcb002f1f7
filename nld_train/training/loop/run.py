"""A run: its stages one after another, from the newest sound checkpoint to the end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state

from nld_train.config.counts import step_flops
from nld_train.config.plan import StagePlan, stage_plans, total_steps
from nld_train.config.schema import Config
from nld_train.data.batches import batches
from nld_train.data.chat.run_template import template_note
from nld_train.data.order import StageOrder, stage_orders
from nld_train.data.samples import training_samples
from nld_train.data.tokenizer_files import read_tokenizer
from nld_train.errors import UserError, system_error
from nld_train.model.accelerator import make_overlap_buffers
from nld_train.model.build import build_model, resolve_dtype, transformer_config
from nld_train.model.initialize import initialize
from nld_train.model.kernels import kernels_in_words
from nld_train.model.rotary import RotaryEmbedding
from nld_train.processes import world_size
from nld_train.profiling import profiled
from nld_train.training.checkpoint import load as checkpoint
from nld_train.training.checkpoint.collective_errors import on_every_rank
from nld_train.training.checkpoint.contents import Progress
from nld_train.training.checkpoint.hub import commit_of
from nld_train.training.checkpoint.initial_weights import find_initial_weights, load_initial_weights
from nld_train.training.checkpoint.noisy_lengths import noisy_lengths_of_run
from nld_train.training.checkpoint.resumed import Resumed, find_resumed
from nld_train.training.checkpoint.save import CheckpointWriter
from nld_train.training.hooks.base import RunningStage, make_hooks
from nld_train.training.loop.finite import refuse_non_finite_state
from nld_train.training.loop.hardware import peak_flops
from nld_train.training.loop.heartbeats import Beat, heartbeats
from nld_train.training.loop.lines import first_line, last_line
from nld_train.training.loop.optimizer import (
    build_optimizer,
    build_scheduler,
    gather_parameters,
    optimizer_parts,
    wrap_model,
)
from nld_train.training.loop.packing import pack_conversations
from nld_train.training.loop.parallel import parallel_groups, reduce_over_hosts
from nld_train.training.loop.preflight import check_files
from nld_train.training.loop.profile import make_profile
from nld_train.training.loop.rank_times import RankTimes
from nld_train.training.loop.run_files import LogFailedError, file_errors, prepare_to_save
from nld_train.training.loop.signals import StopRequest, stop_requests
from nld_train.training.loop.timers import Timers
from nld_train.training.loop.update import NonFiniteError, NonFiniteUpdateError
from nld_train.training.metrics.records import StepRecord, step_record
from nld_train.training.metrics.registry import MetricTable
from nld_train.training.metrics.run_log import RunLog
from nld_train.training.run_lock import RunLock, run_lock


def train(config: Config) -> int:
    """Trains, or resumes training; called on every process.

    Args:
        config: the settings.

    Returns:
        The exit status: 0 at the end of the run or at `run.max_steps`, else that of `signals`.

    Raises:
        UserError: the data, a checkpoint or `run.dir` do not fit the settings, another run writes to `run.dir`, or the
            loss is no longer finite.
    """
    check_files(config)
    config = noisy_lengths_of_run(config, world_size())
    with (
        run_lock(Path(config.run.dir)) as lock,
        parallel_groups(config) as device,
        stop_requests() as stop,
        heartbeats(config) as beat,
    ):
        return Run(config, device, stop, lock, beat).train()


@dataclass(frozen=True)
class _StageState:
    """The stage that is trained: trainer, optimizer and scheduler, and the range of its steps."""

    stage: RunningStage
    optimizer: Any
    scheduler: Any
    first: int
    last: int


class Run:
    """The state of a run on one process.

    Args:
        config: the settings.
        device: of this process.
        stop: whether this process has received a signal to stop.
        lock: of `run.dir`, on rank 0.
        beat: tells a monitor that this process is not stuck.
    """

    def __init__(self, config: Config, device: Any, stop: StopRequest, lock: RunLock | None, beat: Beat) -> None:
        self.config = config
        self.device = device
        self.stop = stop
        self.lock = lock
        self.beat = beat
        self.plans = stage_plans(config)
        self.data_facts = pack_conversations(config)
        self.orders: dict[str, StageOrder] = stage_orders(config, self.plans)
        # Both are checked before the model is built. A resumed run does not need initial weights.
        self.resumed = find_resumed(config, self.orders)
        self.initial_weights = None if self.resumed else find_initial_weights(config)
        self.data_rank = parallel_state.get_data_parallel_rank()
        self.data_size = parallel_state.get_data_parallel_world_size()
        self.rotary = RotaryEmbedding(config.model, device)
        self.hooks = make_hooks(config, self.rotary)
        self.dtype = resolve_dtype(config, device)
        self.profile = make_profile(config, dist.get_rank(), device)
        self.timers = Timers(device)
        self.rank_times = RankTimes(config.logging.every, self.timers, device)
        self.peak = peak_flops(device, config.logging.peak_tflops)
        self.seconds_per_flop: deque[float] = deque(maxlen=20)
        self.megatron = transformer_config(config, device)
        self.megatron.timers = self.timers
        self.model = self._build_model()
        self.writer = CheckpointWriter(config, device, self.resumed.directory if self.resumed else None)

    def _build_model(self) -> list[Any]:
        """This rank's chunks; the first stage decides which weights have gradients, and wraps them."""
        chunks = build_model(self.config, self.megatron, self.device)
        # A checkpoint fills every weight, and drawing those of a large model takes minutes on a CPU.
        if self.resumed is None and self.initial_weights is None:
            initialize(chunks, self.config.model, self.config.run.seed)
        return list(chunks)

    def train(self) -> int:
        """Trains the stages that the newest sound checkpoint has not completed; returns the exit status."""
        self._open_log()
        with self.log:
            if self.initial_weights is not None:
                load_initial_weights(self.initial_weights, self.config, self.model)
            try:
                status = self._train_stages()
            except (NonFiniteError, LogFailedError) as error:
                # Raised on every rank; the checkpoint that is being written is of an earlier step.
                self.writer.finish()
                if not isinstance(error, NonFiniteError):
                    raise
                advice = self.writer.advice(isinstance(error, NonFiniteUpdateError))
                raise UserError(f"{error}; {advice}") from error
            self.writer.close()
            self.profile.close()
            self._close_log(status)
        return status

    @property
    def _done(self) -> int:
        """Optimizer steps before this start."""
        return self.resumed.progress.step if self.resumed else 0

    def _train_stages(self) -> int:
        """Trains the rest of the stages; returns the exit status."""
        status = 0
        for plan in self.plans:
            if self._done >= plan.first_step + plan.steps:
                continue
            begun = self.resumed is not None and self.resumed.progress.stage == plan.name
            if self.resumed is not None and not begun and self._done == plan.first_step:
                # The previous stage is complete: only its weights are loaded.
                checkpoint.load(self.resumed.directory, self.model, None)
            last, status = self._train_stage(plan, self.resumed if begun else None)
            if status or plan.first_step + last == self.config.run.max_steps or last < plan.steps:
                break
        return status

    def _train_stage(self, plan: StagePlan, resumed: Resumed | None) -> tuple[int, int]:
        """Trains a stage to its end, to `run.max_steps` or to a signal; returns its last step and the exit status."""
        state = self._begin_stage(plan, resumed)
        micro_batches = self._batches(plan, state)
        for step in range(state.first + 1, state.last + 1):
            with self.profile.step(plan.first_step + step):
                status = self._make_step(state, step, micro_batches)
            if status:
                return step, status
        return state.last, 0

    def _make_step(self, state: _StageState, step: int, micro_batches: Iterator[list[Any]]) -> int:
        """One optimizer step, and what follows it; returns the exit status of a signal, or 0."""
        record = self._step(state, step, micro_batches)
        self.beat()
        self.writer.poll()
        self._run_hooks(state, step, record)
        self.log.write(record)
        status = self._stop_status()
        if step % self.config.checkpoint.every == 0 or step == state.last or status:
            with profiled("save"):
                self._save(state.stage.plan, step, state.optimizer)
            self.beat()
        return status

    def _begin_stage(self, plan: StagePlan, resumed: Resumed | None) -> _StageState:
        """Prepares the model and a new optimizer, with the state of the checkpoint if the stage is resumed."""
        if self.config.parallel.overlap_tensor:
            make_overlap_buffers(self.config, plan.kind)
        trainer = plan.kind.make_trainer(self.config, plan, self.rotary, self.dtype, self.device)
        self.model = wrap_model(self.config, self.megatron, trainer.prepare_model(self.model))
        optimizer = build_optimizer(self.config, plan.stage, self.model, self.dtype)
        for part in optimizer_parts(optimizer):
            part.config.timers = self.timers
        weight_decay = self.config.optimizer.weight_decay
        scheduler = build_scheduler(plan.stage.schedule, optimizer, plan.steps, weight_decay)
        first = 0
        if resumed is not None:
            checkpoint.load(resumed.directory, self.model, optimizer)
            first = resumed.progress.stage_step
            scheduler.step(first)
        return _StageState(RunningStage(plan, trainer), optimizer, scheduler, first, self._last_step(plan))

    def _step(self, state: _StageState, step: int, micro_batches: Iterator[list[Any]]) -> StepRecord:
        """One optimizer step, and its record."""
        # Waiting for the data is part of a step, so that a slow data loader shows in the speed.
        begin = time.perf_counter()
        number = state.stage.plan.first_step + step
        self.rank_times.begin(number)
        with profiled("wait for data"):
            step_batches = next(micro_batches)
        waited = time.perf_counter() - begin
        state.scheduler.step(1)
        measures = state.stage.trainer.step(self.model, state.optimizer, step_batches)
        seconds, plan = time.perf_counter() - begin, state.stage.plan
        self.seconds_per_flop.append(seconds / step_flops(self.config, plan.stage))
        rate = max(group["lr"] for group in state.optimizer.param_groups)
        record = step_record(self.config, plan, step, measures, rate, seconds, self.seconds_per_flop, self.peak)
        ranks = self.rank_times.end(number, waited, seconds)
        if ranks is not None:
            record.add("ranks", ranks)
        return record

    def _run_hooks(self, state: _StageState, step: int, record: StepRecord) -> None:
        named = zip(self.config.run.hooks, self.hooks, strict=True)
        due = {name: hook for name, hook in named if hook.due(state.stage.plan, step)}
        if due:
            gather_parameters(self.model)
            refuse_non_finite_state(self.model, state.optimizer, record.values["step"])
        for name, hook in due.items():
            gather_parameters(self.model)
            with profiled(name):
                hook.run(self.model, state.stage, record)
            self.beat()

    def _stop_status(self) -> int:
        """The exit status of a signal that any rank has received, so that all ranks stop after the same step.

        Raises:
            LogFailedError: on every rank, if rank 0 could not write the record of the step.
        """
        failure = self.log.failure
        status, failed = reduce_over_hosts([self.stop.status, int(failure is not None)], dist.ReduceOp.MAX)
        if failed:
            raise LogFailedError(self.config.run.dir, "by rank 0" if failure is None else system_error(failure))
        return status

    def _last_step(self, plan: StagePlan) -> int:
        """The last step of the stage in this start; `run.max_steps` counts over the whole run."""
        if self.config.run.max_steps is None:
            return plan.steps
        return max(0, min(plan.steps, self.config.run.max_steps - plan.first_step))

    def _batches(self, plan: StagePlan, state: _StageState) -> Iterator[list[Any]]:
        """This rank's micro-batches of the stage's steps that are left, step after step."""
        return batches(
            training_samples(
                self.config,
                plan.name,
                self.orders[plan.name],
                parallel_state.is_pipeline_first_stage(ignore_virtual=True),
            ),
            first_step=state.first,
            last_step=state.last,
            global_size=self.config.batch.global_size,
            micro_size=self.config.batch.micro_size,
            rank=self.data_rank,
            size=self.data_size,
            workers=self.config.data.workers,
            pin_memory=self.device.type == "cuda",
            collate=state.stage.trainer.collate,
        )

    def _save(self, plan: StagePlan, stage_step: int, optimizer: Any) -> None:
        progress = Progress(
            step=plan.first_step + stage_step,
            stage=plan.name,
            stage_step=stage_step,
            stage_steps=plan.steps,
            data={name: order.fingerprint for name, order in self.orders.items()},
        )
        prepare_to_save(self.config.run.dir, self.lock, self.log)
        self.writer.begin(self.model, optimizer, progress)

    def _open_log(self) -> None:
        """Opens the log and writes the first lines."""
        metrics = MetricTable(metric for hook in self.hooks for metric in hook.metrics)
        with file_errors(self.config.run.dir):
            on_every_rank(lambda: self._make_log(metrics))
        self.log.print(first_line(self.config, self.data_size, self.device, self._origin()))
        if self.device.type == "cuda":
            self.log.print(kernels_in_words(self.config, self.device))
        for line in self.data_facts:
            self.log.print(line)
        if self.resumed and self.resumed.changed:
            self.log.print(f"continues with changed settings: {', '.join(self.resumed.changed)}")
        if self.config.data.tokenizer is not None:
            note = template_note(self.config, read_tokenizer(Path(self.config.data.tokenizer)))
            if note is not None:
                self.log.print(note)

    def _make_log(self, metrics: MetricTable) -> None:
        self.log = RunLog(self.config, dist.get_rank(), total_steps(self.config), self._done, metrics)

    def _origin(self) -> Path | str:
        """Where the weights come from."""
        if self.resumed:
            return self.resumed.directory
        named = self.config.init.checkpoint
        return "random weights" if named is None else commit_of(named, self.initial_weights)

    def _close_log(self, status: int) -> None:
        """Writes the summary and the curves of all steps made so far."""
        limit = self.config.run.max_steps
        early = limit is not None and limit < total_steps(self.config)
        self.log.close(last_line(self.config, status, early))
