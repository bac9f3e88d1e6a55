"""`nemo-xtoken export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nemo_xtoken.errors import CheckpointError, ConfigError, require

DEVICES = ("cuda", "cpu")


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="What checkpoint.save was inside Megatron-Bridge, or one iter_... directory in it.")
    ],
    source: Annotated[
        str, typer.Argument(help="The Hugging Face model that the student was made from: a directory or a name.")
    ],
    out: Annotated[Path, typer.Argument(help="A directory that is not there yet.")],
    device: Annotated[str, typer.Option(help="cuda, or cpu on a machine without a GPU.")] = "cuda",
) -> None:
    """Write a student distilled inside Megatron-Bridge as a Hugging Face model with its tokenizer.

    W, also as it was learnt, and the run's config go to OUT/distillation.
    """
    if device not in DEVICES:
        raise ConfigError(f"--device: expected one of {', '.join(DEVICES)}, got {device}")
    require(not out.exists(), f"{out} is there already; name a directory that is not, or remove it")
    _check_kind(checkpoint)
    from nemo_xtoken.integrations.bridge.to_hugging_face import write

    write(checkpoint, source, out, device)


def _check_kind(checkpoint: Path) -> None:
    """Whose checkpoint it is can be told before anything is imported for it."""
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint}: no such directory; expected a checkpoint of Megatron-Bridge")
    if (checkpoint / "context").is_dir() and (checkpoint / "weights").is_dir():
        raise CheckpointError(
            f"{checkpoint} is a checkpoint of NeMo, not of Megatron-Bridge; export it with NeMo's own "
            'llm.export_ckpt(CHECKPOINT, "hf", OUT, source=SOURCE)'
        )
