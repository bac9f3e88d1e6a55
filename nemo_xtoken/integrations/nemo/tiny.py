"""A distillation for any machine: sums as text, bytes as the teacher's tokens, numbers as the student's."""

import fcntl
import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from nemo_xtoken import tokenizers
from nemo_xtoken.data import prepare
from nemo_xtoken.integrations.nemo.data import PreparedDataModule

DOCUMENTS = 400
DATA_FOLDER, HUGGING_FACE_FOLDER = "data", "huggingface"
STUDENT = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 48}
"""The student's shape, in Megatron's words."""


class TinyDataModule(PreparedDataModule):
    """Prepared data of sums, made below `folder` when it is not there.

    Beside it `huggingface` gets the config and the tokenizer that the student is exported with.
    """

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
        _save_huggingface(folder / HUGGING_FACE_FOLDER)
        student, teacher = tokenizers.load(str(folder / HUGGING_FACE_FOLDER)), tokenizers.load("bytes")
        prepare([folder / "sums.jsonl"], folder / DATA_FOLDER, student, teacher)


def _save_huggingface(folder: Path) -> None:
    """The student's shape, and a byte-level tokenizer that also has two thirds of the numbers of two digits."""
    numbers = [f"{i:02d}" for i in range(100) if i % 3]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *numbers]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [(digits[0], digits[1]) for digits in numbers])
    library = Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=library, eos_token="</s>").save_pretrained(folder)
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(pieces) + 1,
        num_hidden_layers=STUDENT["num_layers"],
        hidden_size=STUDENT["hidden_size"],
        num_attention_heads=STUDENT["num_attention_heads"],
        num_key_value_heads=STUDENT["num_query_groups"],
        intermediate_size=STUDENT["ffn_hidden_size"],
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
    ).save_pretrained(folder)


def _sums() -> list[str]:
    rng = random.Random(DOCUMENTS)
    pairs: list[tuple[Any, Any]] = [(rng.randrange(100), rng.randrange(100)) for _ in range(DOCUMENTS)]
    return [f"{a}+{b}={a + b}" for a, b in pairs]
