"""What a user sees of a distillation in NeMo's loggers."""

import time
from pathlib import Path
from typing import Any, Optional

import lightning.pytorch as pl
from nemo.lightning import io
from nemo.lightning.megatron_parallel import MegatronStep

from nemo_xtoken.integrations.nemo.whole_io import WholeIO


class DistillationProgress(pl.Callback, io.IOMixin):
    """Logs the means of every metric of the loss after each step, the ratio that balanced it, and tokens per second.

    Training: `kd`, `ce`, `teacher_entropy`, `top_1_agreement`, `chunk_tokens`, `kd_weight`, `chunks`, `tokens`,
    `tokens_per_second`; of several teachers by name, as `kd/NAME`. Validation: the means with the prefix `val_`.
    Every rank logs them, so that callbacks which decide by one (EarlyStopping, ModelCheckpoint) decide alike.
    """

    def __init__(self) -> None:
        super().__init__()
        self._started = 0.0

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        """Start the clock."""
        self._started = time.monotonic()
        return step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Log a training step, the optimizer's work included."""
        run = pl_module.run
        values: dict[str, float] = {name: mean for name, mean in run.means.items() if mean is not None}
        values.pop("loss", None)  # NeMo logs it as reduced_train_loss
        if run.config.teachers:
            values |= {"kd_weight": run.kd_weight, **_chunks(run)}
        seconds = time.monotonic() - self._started
        values |= {"tokens": run.counts.tokens, "tokens_per_second": run.counts.tokens / seconds}
        for name, value in values.items():
            pl_module.log(name, float(value), batch_size=1)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Log a validation step; Lightning takes the mean over the steps."""
        for name, mean in pl_module.run.means.items():
            if mean is not None and name != "loss":
                pl_module.log(f"val_{name}", float(mean), batch_size=1, on_epoch=True)


class ProjectionSnapshots(pl.Callback, WholeIO):
    """Writes each W that is trained as an ordinary projection file, every so many steps and at the end.

    folder  gets `step-N/learnt-projection-NAME.safetensors`; None: `projections` below the trainer's root directory
    """

    def __init__(self, every_n_steps: int = 1000, folder: Optional[str] = None) -> None:
        super().__init__()
        self.every_n_steps, self.folder = every_n_steps, folder

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Write after every so many steps."""
        if trainer.global_step % self.every_n_steps == 0:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write what was learnt in the end."""
        if trainer.global_step % self.every_n_steps:
            self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, pl_module: Any) -> None:
        root = Path(self.folder or Path(trainer.default_root_dir) / "projections")
        target = root / f"step-{trainer.global_step}"
        for projection in pl_module.run.objective.learnt_projections:
            target.mkdir(parents=True, exist_ok=True)
            projection.save(target)


def _chunks(run: Any) -> dict[str, float]:
    """The chunks of the global batch; of several teachers, those of each by its name."""
    names = [teacher.name for teacher in run.config.teachers]
    if len(names) == 1:
        return {"chunks": run.counts.chunks[0]}
    return {f"chunks/{name}": count for name, count in zip(names, run.counts.chunks, strict=True)}
