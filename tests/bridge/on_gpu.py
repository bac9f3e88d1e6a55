"""`python -m tests.bridge.on_gpu FOLDER JOB`: a rank of a job, which a test starts, that distils inside Bridge."""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_xtoken.config import Fp8Config
from nemo_xtoken.errors import UnavailableError, XTokenError
from nemo_xtoken.integrations.bridge.run import choose_device

STUDENT, TEACHER = "wide_student", "wide_teacher"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job trains, and how; `lines` of its last rank come to `FOLDER/name.json`."""

    name: str
    device: str = "cuda"
    tp: int = 1
    pp: int = 1
    cp: int = 1
    steps: int = 5
    student_fp8: str | None = None
    teacher_fp8: str | None = None

    @property
    def ranks(self) -> int:
        """How many processes it has, without data parallelism."""
        return self.tp * self.pp * self.cp

    def text(self) -> str:
        """The job as an argument of this module."""
        return json.dumps(asdict(self))


def fp8(recipe: Any) -> Fp8Config | None:
    return None if recipe is None else Fp8Config(recipe=recipe)


def config_of(folder: Path, job: Job) -> Any:
    """In bf16, with Bridge's own layers of the device, its distributed optimizer and NCCL where there are GPUs."""
    from megatron.bridge.training.config import DistributedInitConfig

    from nemo_xtoken.integrations.bridge.config import BridgeTeacher
    from nemo_xtoken.integrations.bridge.distillation import extend
    from nemo_xtoken.integrations.bridge.precision import mixed_precision
    from tests.bridge import tiny

    config = tiny.student_config(folder, job.name, tp=job.tp, pp=job.pp, steps=job.steps, train={}, student=STUDENT)
    config.dist = DistributedInitConfig()
    config.model.sequence_parallel, config.model.context_parallel_size = job.tp > 1, job.cp
    student_fp8 = fp8(job.student_fp8)
    config.mixed_precision = "bf16_mixed" if student_fp8 is None else mixed_precision(student_fp8)
    config.optimizer.use_distributed_optimizer = config.ddp.use_distributed_optimizer = job.device == "cuda"
    teacher = BridgeTeacher(
        model=str(folder / TEACHER), projection=str(folder / "projection.safetensors"), fp8=fp8(job.teacher_fp8)
    )
    return extend(config, [teacher], tiny.data_config(folder))


def main(folder: Path, job: Job) -> int:
    """Exit codes: 0 done, 1 failed, 3 something is not there that it needs, which stderr says."""
    try:
        choose_device(job.device)
        from tests.bridge import tiny

        lines = tiny.distil(config_of(folder, job))
    except XTokenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 3 if isinstance(error, UnavailableError) else 1
    if int(os.environ["RANK"]) == job.ranks - 1:
        (folder / f"{job.name}.json").write_text(json.dumps(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Job(**json.loads(sys.argv[2]))))
