"""Whether a run goes on as it began: each checkpoint has the config whose steps it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml

from nemo_xtoken.config_io import differences, from_dict
from nemo_xtoken.errors import CheckpointError, ConfigError
from nemo_xtoken.integrations.bridge.config import DistillationContainer
from nemo_xtoken.integrations.bridge.export import LATEST, find_iteration
from nemo_xtoken.integrations.bridge.overrides import TEACHER_KEYS, OurKeys, keys_of

MAY_CHANGE = ("data.validation_path",)
TARGET = "_target_"
"""Bridge writes the class of every part of a config under this key."""


def check_goes_on(config: DistillationContainer) -> None:
    """Raises ConfigError where `checkpoint.load` has a run of other data, teachers or balance than the config's.

    What else a config says is Bridge's, which lets a run go on with another layout, precision or optimizer.
    """
    path = stored_config(config)
    if path is None:
        return
    stored = read(path)
    if stored is None:
        return
    changed = [key for key in differences(stored, _named(keys_of(config), config)) if key not in MAY_CHANGE]
    if changed:
        raise ConfigError(
            f"{config.checkpoint.load} holds a run with another {', '.join(changed)}: give back the old value (see "
            f"{path}) or choose another checkpoint.save and checkpoint.load"
        )


def stored_config(config: DistillationContainer) -> Path | None:
    """The config of the checkpoint that Bridge will go on from; None where there is none."""
    checkpoint = config.checkpoint
    if checkpoint.load is None or checkpoint.finetune or not (Path(checkpoint.load) / LATEST).is_file():
        return None
    step = checkpoint.ckpt_step
    folder = Path(checkpoint.load)
    path = (find_iteration(folder) if step is None else folder / f"iter_{step:07d}") / "run_config.yaml"
    return path if path.is_file() else None


def read(path: Path) -> OurKeys | None:
    """Our keys of a stored config; None for that of a run that is no distillation. Raises CheckpointError."""
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "teachers" not in stored:
            return None
        teachers = [_teacher(teacher) for teacher in stored["teachers"]]
        ours = {"data": stored["dataset"]["data"], "teachers": teachers, "balance": stored["balance"]}
        return from_dict(OurKeys, _without_classes(ours))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"the config of a checkpoint, {path}, can't be read: {error}") from error


def _teacher(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What an override can say of a teacher; of a provider the model that it has its weights from."""
    provider: Mapping[str, Any] = stored.get("provider") or {}
    keys = {key: stored.get(key) for key in TEACHER_KEYS}
    return {**keys, "model": keys["model"] or provider.get("hf_model_id")}


def _named(keys: OurKeys, config: DistillationContainer) -> OurKeys:
    """These keys with the models that the providers of teachers have their weights from."""
    teachers = [
        replace(values, model=values.model or getattr(teacher.provider, "hf_model_id", None))
        for values, teacher in zip(keys.teachers, config.teachers, strict=True)
    ]
    return replace(keys, teachers=tuple(teachers))


def _without_classes(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {key: _without_classes(entry) for key, entry in items if key != TARGET}
    if isinstance(value, list):
        return [_without_classes(entry) for entry in cast("list[Any]", value)]
    return value
