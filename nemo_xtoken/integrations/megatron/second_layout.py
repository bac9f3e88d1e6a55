"""Another layout on the ranks of a model, with process groups of its own.

Megatron keeps the groups of one layout in module variables, which its schedule, checkpoints and layers read. So there
is one set of them for each layout, and that of the model which runs is in their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core import parallel_state

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.integrations.megatron.layout import Layout, make_groups


class SecondLayout:
    """Groups beside those of a layout that has been started, over as many ranks. Every rank must make it.

    layout  what runs in it takes in the place of the first one
    """

    def __init__(self, parallel: ParallelConfig, first: Layout) -> None:
        self._state = {name: {} if isinstance(value, dict) else None for name, value in _state().items()}
        with self._in_place():
            self.layout = Layout(parallel, first.device, make_groups(parallel))

    @contextmanager
    def active(self) -> Iterator[Layout]:
        """Megatron runs in this layout meanwhile."""
        with self._in_place():
            yield self.layout

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        others = _state()
        _put(self._state)
        try:
            yield
        finally:
            self._state = _state()
            _put(others)


def _state() -> dict[str, Any]:
    """Megatron's variables that belong to one layout: groups, ranks and sizes, buffers of gathers."""
    return {name: value for name, value in vars(parallel_state).items() if _is_of_a_layout(name)}


def _put(state: dict[str, Any]) -> None:
    for name, value in state.items():
        setattr(parallel_state, name, value)


def _is_of_a_layout(name: str) -> bool:
    return name == "_global_process_group_list" or (name.startswith("_") and name.isupper())
