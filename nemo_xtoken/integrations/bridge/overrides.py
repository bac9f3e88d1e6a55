"""`key=value` overrides of a distillation: Bridge's own for what is Bridge's, ours, fully checked, for what is ours."""

# pyright: reportMissingImports=false
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from megatron.bridge.training.utils.omegaconf_utils import OverridesError, process_config_with_overrides
from omegaconf import DictConfig, OmegaConf

from nemo_xtoken.config import BalanceConfig, DataConfig, Fp8Config, LossConfig
from nemo_xtoken.config_io import apply_override, from_dict, to_dict
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.bridge.config import BridgeTeacher, DistillationContainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherKeys:
    """What an override can say of a teacher."""

    name: str
    model: str | None
    projection: str | None
    loss: LossConfig
    weight: float
    prepared_as: str | None
    learn_projection: bool
    projection_lr: float
    fp8: Fp8Config | None


TEACHER_KEYS = tuple(field.name for field in dataclasses.fields(TeacherKeys))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OurKeys:
    """The keys that are ours. `data` is that of the dataset."""

    data: DataConfig
    teachers: tuple[TeacherKeys, ...]
    balance: BalanceConfig


def override(config: DistillationContainer, overrides: Sequence[str]) -> DistillationContainer:
    """The config with `data.path=DIR`, `teachers.0.loss.mode=h_kl`, `train.train_iters=100`, `+checkpoint.x=y` ...

    Keys of `data`, `teachers` and `balance` are ours; all others are Bridge's, in its Hydra style. Raises ConfigError.
    """
    names = {field.name for field in dataclasses.fields(OurKeys)}
    ours = [text for text in overrides if text.partition("=")[0].split(".")[0] in names]
    bridges = [text for text in overrides if text not in ours]
    before = {key: _value_at(config, key) for key in (text.partition("=")[0] for text in bridges)}
    dataset: Any = config.dataset
    tree = OmegaConf.create(to_dict(keys_of(config)))
    for text in ours:
        apply_override(cast("DictConfig", tree), text)
    keys = from_dict(OurKeys, OmegaConf.to_container(tree))
    teachers = _teachers(config.teachers, keys.teachers)
    # Frozen, so Bridge must not find them: it sets every field, changed or not.
    dataset.data, dataset.teachers, config.teachers, config.balance = None, (), (), cast("BalanceConfig", None)
    try:
        process_config_with_overrides(config, cli_overrides=bridges)
    except OverridesError as error:
        raise ConfigError(str(error).partition("\n")[0]) from error
    finally:
        dataset.data, config.teachers, config.balance = keys.data, teachers, keys.balance
    for key, old in before.items():
        _check_kind(key, old, _value_at(config, key))
    return config


def _value_at(config: Any, key: str) -> Any:
    """The value under a dotted key, None where there is none."""
    for name in key.lstrip("+~").split("."):
        config = getattr(config, name, None)
    return config


def _check_kind(key: str, old: Any, new: Any) -> None:
    """Bridge takes any value for any key. Raises ConfigError where a number or a switch has become something else."""
    kinds: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float)}
    allowed = kinds.get(type(old))
    if allowed is not None and new is not None and type(new) not in allowed:
        raise ConfigError(f"{key}: expected {type(old).__name__}, such as {old}, got {new!r}")


def keys_of(config: DistillationContainer) -> OurKeys:
    """What a config says under the keys that are ours."""
    teachers = tuple(TeacherKeys(**{key: getattr(teacher, key) for key in TEACHER_KEYS}) for teacher in config.teachers)
    return OurKeys(data=config.dataset.data, teachers=teachers, balance=config.balance)


def _teachers(old: Sequence[BridgeTeacher], keys: Sequence[TeacherKeys]) -> tuple[BridgeTeacher, ...]:
    if len(keys) > len(old):
        raise ConfigError(f"an override can't add a teacher: the recipe has {len(old)}")
    return tuple(
        dataclasses.replace(
            teacher,
            provider=None if values.model is not None else teacher.provider,
            **{key: getattr(values, key) for key in TEACHER_KEYS},
        )
        for teacher, values in zip(old, keys, strict=False)
    )
