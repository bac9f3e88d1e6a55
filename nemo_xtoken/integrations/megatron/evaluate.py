"""Evaluation of a training from its directory: loads the latest checkpoint, whatever layout wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from nemo_xtoken.config import ParallelConfig, RunConfig
from nemo_xtoken.config_io import load_run
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron.launcher import run_task
from nemo_xtoken.integrations.megatron.local_ranks import Task
from nemo_xtoken.integrations.megatron.run_dir import CONFIG_FILE

EVALUATION = "nemo_xtoken.integrations.megatron.evaluation"


def evaluate(
    run: str | Path | RunConfig,
    prepared_path: str | Path,
    questions: Sequence[tuple[str, str]] = (),
    *,
    max_new_tokens: int = 16,
    parallel: ParallelConfig | None = None,
) -> dict[str, float]:
    """Evaluate the latest checkpoint of a run on prepared held-out data.

    Args:
        run: the run's directory, or its config.
        prepared_path: prepared data with the run's student tokenizer.
        questions: (prompt, answer) pairs to be answered greedily, written as in the training text.
        max_new_tokens: most tokens of an answer.
        parallel: the layout to evaluate in, one rank when None; tensor parallelism only.

    Returns:
        The keys of `evaluation.held_out_loss`, and with questions `exact_answers` (the share that is right) and
        `questions`.

    Raises DataError for data of another tokenizer, CheckpointError where no checkpoint is complete.
    """
    config = run if isinstance(run, RunConfig) else load_run(_config_path(Path(run)))
    config = replace(config, parallel=parallel or ParallelConfig(), teachers=())
    if config.parallel.world_size != config.parallel.tensor_model_parallel_size:
        raise ConfigError("evaluation runs tensor parallel only: leave the other sizes of parallel at 1")
    task = Task(EVALUATION, "run_rank", (config, str(prepared_path), tuple(questions), max_new_tokens), config.device)
    return cast("dict[str, float]", run_task(task, config.rank_names()))


def _config_path(run_dir: Path) -> Path:
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"expected the directory of a training run at {run_dir}, found no {CONFIG_FILE} in it")
    return path
