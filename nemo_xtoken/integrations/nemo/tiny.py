"""A distillation for any machine: sums as text, bytes as the teacher's tokens, numbers as the student's."""

import base64
import fcntl
import json
import random
from pathlib import Path
from typing import Any

from nemo_xtoken import tokenizers
from nemo_xtoken.data import prepare
from nemo_xtoken.integrations.nemo.data import PreparedDataModule

DOCUMENTS = 400
DATA_FOLDER = "data"


class TinyDataModule(PreparedDataModule):
    """Prepared data of sums, made below `folder` when it is not there."""

    def __init__(
        self,
        folder: str,
        *,
        seq_length: int = 32,
        teacher_seq_length: int = 48,
        micro_batch_size: int = 2,
        global_batch_size: int = 8,
        validation_batches: int = 1,
        seed: int = 1234,
    ) -> None:
        make_tiny_data(Path(folder))
        super().__init__(
            str(Path(folder) / DATA_FOLDER),
            seq_length=seq_length,
            teacher_seq_length=teacher_seq_length,
            micro_batch_size=micro_batch_size,
            global_batch_size=global_batch_size,
            validation_batches=validation_batches,
            seed=seed,
        )


def make_tiny_data(folder: Path) -> None:
    """Write text and tokenizer, and prepare them; one process of this machine does it, the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "sums.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in _sums()))
        student, teacher = tokenizers.load(_student_spec(folder)), tokenizers.load("bytes")
        prepare([folder / "sums.jsonl"], folder / DATA_FOLDER, student, teacher)


def _student_spec(folder: Path) -> str:
    """A rank file of the 256 bytes and of two thirds of the numbers of two digits."""
    path = folder / "pairs.tiktoken"
    pieces = [bytes([value]) for value in range(256)] + [f"{i:02d}".encode() for i in range(100) if i % 3]
    path.write_text("".join(f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(pieces)))
    return f"{path}?pattern=gpt2"


def _sums() -> list[str]:
    rng = random.Random(DOCUMENTS)
    pairs: list[tuple[Any, Any]] = [(rng.randrange(100), rng.randrange(100)) for _ in range(DOCUMENTS)]
    return [f"{a}+{b}={a + b}" for a, b in pairs]
