"""The training loop: Megatron's schedule, optimizer and checkpoints around the distillation loss."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func

from nemo_xtoken.config import RunConfig
from nemo_xtoken.errors import StoppedError, XTokenError
from nemo_xtoken.integrations.megatron import layout as layouts
from nemo_xtoken.integrations.megatron import worlds
from nemo_xtoken.integrations.megatron.checkpoint import Position
from nemo_xtoken.integrations.megatron.checkpoint_files import checkpoint_path
from nemo_xtoken.integrations.megatron.fp8_layers import calibrating, needs_calibration
from nemo_xtoken.integrations.megatron.fp8_record import Fp8Record
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.learnt_projection import learnt_projection_path
from nemo_xtoken.integrations.megatron.metrics import MetricsLog
from nemo_xtoken.integrations.megatron.progress import ProgressDisplay
from nemo_xtoken.integrations.megatron.setup import Training, set_up
from nemo_xtoken.integrations.megatron.step import Counts, Scales, count_global_batch, sum_reports, with_total
from nemo_xtoken.integrations.megatron.stopping import StopRequest, Watchdog
from nemo_xtoken.integrations.megatron.student import unwrap
from nemo_xtoken.integrations.megatron.teacher_ranks import serve
from nemo_xtoken.integrations.megatron.worlds import Job
from nemo_xtoken.teachers import SampleRange
from nemo_xtoken.types import DistillBatch

Line = dict[str, float | int]


def run_rank(config: RunConfig, init_method: str) -> None:
    """Train as the rank that the environment names, from the latest checkpoint to `train.steps`."""
    job = worlds.join(config, init_method)
    parallel = config.parallel if job is None else job.own.parallel
    world = None if job is None else job.world
    layout = layouts.start(parallel, config.device, config.train.seed, init_method, world)
    try:
        if job is None or job.teacher is None:
            train(config, layout, job)
        else:
            serve(config, layout, job, job.teacher)
    finally:
        layouts.stop()


def train(config: RunConfig, layout: Layout, job: Job | None = None) -> None:
    """Train on a layout that has been started, in a job that has remote teachers, or in none."""
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest().listening())
        watchdog = stack.enter_context(Watchdog(config.train.hang_seconds).watching())
        training = set_up(config, layout, job)
        stack.callback(training.objective.close)
        start = training.start
        training.objective.begin(lambda: announced(config, start))
        batches = training.batches()
        is_first = layout.rank == 0
        students = [unwrap(model) for model in training.models]
        record = Fp8Record(config, students, layout, start.step)
        log = MetricsLog(Path(config.run_dir), start.step) if is_first else None
        if log is not None:
            stack.callback(log.close)
        display = stack.enter_context(
            ProgressDisplay(config.train.steps, start.step, config.train.log_interval, silent=not is_first)
        )
        if start.step:
            display.say(f"resuming {config.run_dir} after step {start.step}")
        for step in range(start.step + 1, config.train.steps + 1):
            watchdog.feed()
            record.begin(step)
            line = train_step(training, step, training.padded(next(batches)))
            record.end(step)
            line.update(validate(training) if _is_due(step, config.train.validation_interval) else {})
            if log is not None:
                log.write(line)
            display.show(line)
            is_last = step == config.train.steps
            training.state.writer.poll()
            ended_by = stop.agreed(layout)
            if ended_by or is_last or _is_due(step, config.train.checkpoint_interval):
                training.state.save(Position(step, batches.consumed_samples), config.train.keep_checkpoints)
            if ended_by and not is_last:
                training.state.writer.finish()
                where = f"after step {step} of {config.train.steps}"
                raise StoppedError(f"{ended_by.name}: {config.run_dir} is saved {where}")
        training.state.writer.finish()
        for teacher in config.teachers:
            if teacher.learn_projection:
                last = checkpoint_path(Path(config.run_dir), config.train.steps)
                display.say(f"the projection learnt with {teacher.name}: {learnt_projection_path(last, teacher.name)}")


def train_step(training: Training, step: int, micro_batches: Sequence[DistillBatch]) -> Line:
    """One step of the optimizer. Returns its line of metrics, the same on every rank."""
    started = time.monotonic()
    balance = training.balance
    training.objective.prepare(micro_batches)
    counts = count_global_batch(micro_batches, training.losses, training.layout)
    if balance.needs_measuring and any(counts.chunks):
        with calibrating(uncalibrated(training)):
            means = run_micro_batches(training, micro_batches, Scales.of(counts, 1.0, 1.0), forward_only=True)
        balance.update(means["kd"], _number(means["ce"]))
    kd_weight = balance.kd_weight
    if begins_with_scale_one(training, step):
        calibrate(training, micro_batches, _scales(training, counts))
    means = run_micro_batches(training, micro_batches, _scales(training, counts), forward_only=False)
    loss = _number(means["loss"])
    if not math.isfinite(loss):
        raise XTokenError(
            f"the loss is {loss} at step {step}; lower optimizer.lr or lengthen optimizer.lr_warmup_steps"
        )
    training.schedule.step(1)
    update: Any = training.optimizer.step()
    for projection in training.objective.learnt_projections:
        projection.step(counts.tokens)
    line: Line = {"step": step, "loss": loss, **_counted(means)}
    if training.config.teachers:
        line |= {"ratio": _used_ratio(training, means, kd_weight), **_chunks(training, counts)}
        balance.update(means["kd"], _number(means["ce"]))
    seconds = time.monotonic() - started
    return line | {
        "lr": training.optimizer.param_groups[0]["lr"],
        "grad_norm": float(update[1] or 0.0),
        "tokens": counts.tokens,
        "tokens_per_second": counts.tokens / seconds,
        "seconds": seconds,
        "memory_mib": peak_memory(training.layout.device),
    }


def peak_memory(device: torch.device) -> float:
    """MiB that this rank has held at most so far: on a GPU what torch has allocated there, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def begins_with_scale_one(training: Training, step: int) -> bool:
    """Whether delayed scaling has no scales before this step; Transformer Engine's are in every checkpoint."""
    fp8 = training.config.fp8
    if fp8 is None or fp8.recipe != "delayed":
        return False
    return bool(uncalibrated(training)) if fp8.backend == "emulate" else step == 1


def calibrate(training: Training, micro_batches: Sequence[DistillBatch], scales: Scales) -> None:
    """Before the first step of delayed scaling: one pass for the largest values alone, whose gradients are dropped.

    The emulation rounds nothing in it. Transformer Engine can't do that for gradients, and rounds with scale 1: those
    of a sum over tokens, as the loss is, come through it, those of a mean would not.
    """
    with calibrating(uncalibrated(training)):
        run_micro_batches(training, micro_batches, scales, forward_only=False)
    for projection in training.objective.learnt_projections:
        projection.optimizer.zero_grad()


def uncalibrated(training: Training) -> list[GPTModel]:
    """The rank's models whose delayed scaling has not seen a gradient yet."""
    return [student for student in map(unwrap, training.models) if needs_calibration(student)]


def announced(config: RunConfig, start: Position) -> Iterator[SampleRange]:
    """The samples that a run's steps and validations work on, in order, from where it goes on."""
    per_step = config.train.global_batch_size
    first = start.consumed_samples
    for step in range(start.step + 1, config.train.steps + 1):
        yield SampleRange("training", first, per_step)
        first += per_step
        if config.data.validation_path is not None and _is_due(step, config.train.validation_interval):
            yield SampleRange("validation", 0, config.train.validation_batches * per_step)


def run_micro_batches(
    training: Training, micro_batches: Sequence[DistillBatch], scales: Scales, *, forward_only: bool
) -> dict[str, float | None]:
    """Megatron's schedule over a step's micro batches; global means of the reported metrics, on every rank."""
    models, config = training.models, training.config
    for model in models:
        model.train(not forward_only)
    if not forward_only:
        for model in models:
            model.zero_grad_buffer()
        training.optimizer.zero_grad()
    reports = get_forward_backward_func()(
        forward_step_func=training.objective.forward_step(scales),
        data_iterator=[iter(micro_batches) for _ in models],
        model=[*models],
        num_microbatches=len(micro_batches),
        seq_length=micro_batches[0].student_tokens.shape[1],
        micro_batch_size=config.train.micro_batch_size,
        forward_only=forward_only,
    )
    return with_total(sum_reports(reports, training.layout), config.teachers)


def validate(training: Training) -> Line:
    """Means of all that the loss reports, over the first `validation_batches` of the validation data."""
    batches = training.validation_batches()
    if batches is None:
        return {}
    count = training.config.train.validation_batches
    micro_batches = training.padded([batch for _ in range(count) for batch in next(batches)])
    training.objective.prepare(micro_batches)
    means = run_micro_batches(training, micro_batches, Scales(), forward_only=True)
    return {f"validation_{name}": mean for name, mean in _counted(means).items() if name != "loss"}


def _scales(training: Training, counts: Counts) -> Scales:
    balance = training.balance.config
    ceiling = balance.max_ratio if balance.mode == "micro_batch" else None
    return Scales.of(counts, training.balance.kd_weight, training.balance.ce_weight, ceiling)


def _chunks(training: Training, counts: Counts) -> Line:
    """The chunks of the global batch; of several teachers, those of each by its name."""
    if len(counts.chunks) == 1:
        return {"chunks": counts.chunks[0]}
    teachers = training.config.teachers
    return {f"chunks/{teacher.name}": chunks for teacher, chunks in zip(teachers, counts.chunks, strict=True)}


def _used_ratio(training: Training, means: dict[str, float | None], kd_weight: float) -> float:
    """The weight that L_KD had; where each micro batch has its own, the one that explains the step's loss."""
    kd = means["kd"]
    if training.balance.config.mode != "micro_batch" or not kd:
        return kd_weight
    return (_number(means["loss"]) - _number(means["ce"])) / kd


def _counted(means: dict[str, float | None]) -> Line:
    """The means that are over something."""
    return {name: mean for name, mean in means.items() if mean is not None}


def _number(mean: float | None) -> float:
    return 0.0 if mean is None else mean


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
