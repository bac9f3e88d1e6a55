"""`python -m nemo_xtoken.integrations.bridge.to_hugging_face CHECKPOINT SOURCE OUT`: a student, exported."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_xtoken.errors import ConfigError, XTokenError
from nemo_xtoken.integrations.bridge.run import ROOM, choose_device


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 wrong use."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {ROOM}.to_hugging_face",
        description="Write a checkpoint's student as a Hugging Face model; W and the config go to OUT/distillation.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="what checkpoint.save was")
    parser.add_argument("source", metavar="SOURCE", help="the Hugging Face model that the student was made from")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(arguments)
    try:
        write(options.checkpoint, options.source, options.out, options.device)
    except XTokenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def write(checkpoint: Path, source: str, out: Path, device: str) -> None:
    """See `export.export`. Raises UnavailableError where Bridge can't be imported."""
    choose_device(device)
    importlib.import_module(f"{ROOM}.export").export(checkpoint, source, out)


if __name__ == "__main__":
    sys.exit(main())
