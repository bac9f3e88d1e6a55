"""The teachers of prepared data by name: what the command line gives, and what a run asks for."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.teacher_config import FILE_NAME

DEFAULT_NAME = "teacher"


def named_values(values: Sequence[str], kind: str) -> dict[str, str]:
    """Values by name from `NAME=VALUE` or `VALUE`; those without a name are teacher, teacher-2, ... by their place.

    A value may hold `=` itself where what stands before it is no name, as in `x.tiktoken?pattern=qwen`.
    Raises ConfigError for a name that occurs twice.
    """
    named: dict[str, str] = {}
    for place, text in enumerate(values, start=1):
        name, equals, value = text.partition("=")
        if not equals or not is_name(name):
            name, value = default_name(place), text
        if name in named:
            raise ConfigError(f"two teachers are named {name!r}; give each its own name: --{kind} NAME={value}")
        named[name] = value
    return named


def whole_numbers(values: Sequence[str]) -> int | dict[str, int]:
    """Lengths of teachers' sequences: one number for all of them, or one by name for each; {} for none.

    Raises ConfigError for what is no number of at least 2, and for a number without a name among several.
    """
    for text in values:
        number = text.rpartition("=")[2]
        if not number.isascii() or not number.isdigit() or int(number) < 2:
            raise ConfigError(
                f"expected a teacher's length in tokens, at least 2, as LENGTH or NAME=LENGTH, got {text!r}"
            )
        if "=" not in text and len(values) > 1:
            raise ConfigError(f"expected one length for all teachers or NAME=LENGTH for each, got {', '.join(values)}")
    if len(values) == 1 and "=" not in values[0]:
        return int(values[0])
    return {name: int(number) for name, number in named_values(values, "teacher-length").items()}


def default_name(place: int) -> str:
    """The name of the teacher at a place, from 1."""
    return DEFAULT_NAME if place == 1 else f"{DEFAULT_NAME}-{place}"


def is_name(text: str) -> bool:
    """Whether a teacher can be named so, here and in a run's config: letters, digits and . _ -"""
    return FILE_NAME.fullmatch(text) is not None
