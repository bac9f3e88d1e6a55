"""A run in a few words and numbers: what was run, how far it came, and what was not finite on the way."""

from __future__ import annotations

from nemo_xtoken.config import ParallelConfig, RunConfig, TeacherConfig
from nemo_xtoken.report.curves import name_of, write_lapses
from nemo_xtoken.report.html import LOSS_NAMES
from nemo_xtoken.report.run_record import RunRecord

KINDS = {
    "colocated": "on the student's ranks",
    "remote": "on ranks of its own",
    "cached": "from a cache",
}
SIZES = {
    "data_parallel_size": "DP",
    "tensor_model_parallel_size": "TP",
    "pipeline_model_parallel_size": "PP",
    "virtual_pipeline_model_parallel_size": "VPP",
    "context_parallel_size": "CP",
}


def summary(run: RunRecord) -> list[tuple[str, str]]:
    """What was run, as (name, value): losses and teachers, layout, device, data; empty without a config."""
    config = run.config
    if config is None:
        return []
    teachers = [_teacher(teacher) for teacher in config.teachers]
    lengths = f"{config.data.student_sequence_length:,}"
    if config.teachers:
        lengths += f" and {config.data.teacher_sequence_length:,}"
    batch = f"{config.train.global_batch_size:,} sequences of {lengths} tokens a step"
    return [
        ("Loss", "; ".join(teachers) or "cross-entropy alone, no teacher"),
        ("Layout", _layout(config)),
        ("Data", f"{config.data.path or 'a blend'}, {batch}"),
    ]


def _teacher(teacher: TeacherConfig) -> str:
    loss = LOSS_NAMES[teacher.loss.mode]
    return f"{loss} with {teacher.name}, {KINDS[teacher.kind]}"


def _layout(config: RunConfig) -> str:
    parallel: ParallelConfig = config.parallel
    sizes = [f"{short} {getattr(parallel, field)}" for field, short in SIZES.items() if getattr(parallel, field) > 1]
    precision = "BF16" if config.train.bf16 else "FP32"
    fp8 = f" and {config.fp8.recipe} FP8" if config.fp8 else ""
    return f"{', '.join(sizes) or 'one rank'}, on {config.device.upper()}, {precision}{fp8}"


def totals(run: RunRecord) -> list[tuple[str, str]]:
    """The run in a few numbers, as (name, value)."""
    if not run.metrics:
        return []
    speeds = sorted(speed for _, speed in run.curve("tokens_per_second"))
    last, planned = run.steps
    numbers = [
        ("Steps", f"{last:,} of {planned:,}" if planned else f"{last:,}"),
        ("Tokens", f"{sum(v for _, v in run.curve('tokens')):,.0f}"),
    ]
    memory = [most for _, most in run.curve("memory_mib")]
    if speeds:
        numbers.append(("Tokens per second, median", f"{speeds[len(speeds) // 2]:,.0f}"))
    if memory:
        numbers.append(("Memory of the first rank, most", f"{max(memory):,.0f} MiB"))
    return [*numbers, ("Training time", f"{sum(v for _, v in run.curve('seconds')):,.0f} s")]


def shortfall(run: RunRecord) -> str:
    """That a run did not reach its end, in a sentence; empty where it did, or where its end is not known."""
    last, planned = run.steps
    if planned is None or last >= planned:
        return ""
    return f"It has not reached its end: {planned:,} steps were planned, {f'{last:,}' if last else 'none'} logged."


def lapses(run: RunRecord) -> list[str]:
    """A sentence for each thing that was logged as NaN or infinite, with its steps."""
    return [f"{name_of(key)}: {written}." for key in run.keys if (written := write_lapses(run.lapses(key)))]
