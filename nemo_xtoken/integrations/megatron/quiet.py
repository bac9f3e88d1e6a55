"""Keeps from a run's output what megatron-core and torch tell their own developers: no user can act on it."""

from __future__ import annotations

import logging
import warnings

NOTES = {
    "megatron.core.utils": "has reached end of life",  # 0.15, of its own experimental functions
    "megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED",  # 0.19, at each model
    "megatron.core.dist_checkpointing.strategies.torch": "MCore's async save is deprecated",  # 0.19, of every save
    "torch.utils.cpp_extension": "No CUDA runtime is found",  # a CUDA build of torch, CUDA's compiler and no driver
}
WARNINGS = (  # of torch, about how 0.19 calls it for what all ranks of a checkpoint have in common
    "torch.distributed is disabled",
    "The argument order of load has been changed",
)


def keep_quiet() -> None:
    """Drop these notes and warnings, and all Python warnings of megatron, for the rest of this process.

    All else that they log is kept. A second call changes nothing.
    """
    warnings.filterwarnings("ignore", module="megatron")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in NOTES:
        logging.getLogger(name).addFilter(_is_no_note)


def _is_no_note(record: logging.LogRecord) -> bool:
    return NOTES[record.name] not in str(record.msg)
