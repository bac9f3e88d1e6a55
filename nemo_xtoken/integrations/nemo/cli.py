"""`nemo xtoken distill recipe=NAME ...`: found by the nemo command through the entry point group `nemo_run.cli`."""

from collections.abc import Callable
from typing import Any

import nemo_run as run


@run.cli.entrypoint(namespace="xtoken")
def distill(recipe: Callable[..., Any]) -> None:
    """Distil a student from teachers with other tokenizers, by a recipe of this package or one of yours.

    recipe=NAME, one of:

    llama32_1b_from_qwen3_4b

    llama32_1b_from_phi4_mini

    llama32_1b_from_phi4_mini_and_llama32_3b

    nemotron_or_mistral_from_qwen3_32b

    tiny_cpu
    """
    recipe()


from nemo_xtoken.integrations.nemo import recipes  # noqa: E402, F401  # registers them with the command above
