"""How many threads a batch may use."""

from __future__ import annotations

import os

_available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _after_fork() -> None:
    global _available
    _available = 1
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read by the tokenizers library at every call


os.register_at_fork(after_in_child=_after_fork)


def thread_count(num_texts: int) -> int:
    """Threads for a batch: at most one per core and per text, and only one in a forked process, such as a rank."""
    return max(1, min(_available, num_texts))
