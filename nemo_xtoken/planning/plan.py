"""The plan of a run: an estimate for each kind of teacher, and which one to take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nemo_xtoken.config import ModelConfig, RunConfig
from nemo_xtoken.data.manifest import Manifest
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.run_data import prepared_teachers
from nemo_xtoken.errors import ConfigError, DataError
from nemo_xtoken.planning.hardware import Hardware
from nemo_xtoken.planning.kinds import Estimate, Setting, cached, colocated, own_layout, remote
from nemo_xtoken.planning.shapes import Shape
from nemo_xtoken.teachers.cache.rows import Storage, bytes_per_token

MARGIN = 1.05
"""A kind that is this much faster is worth its GPUs or its disk."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to expect.

    parameters     of the student, and of each teacher by name
    cache_bytes_per_token, cache_bytes  of the cache that `cached` reads; bytes for all teacher tokens of the run
    epochs         times that the run reads its data; None where that is not prepared here
    """

    gpus: int
    parameters: dict[str, int]
    tokens_per_step: int
    estimates: tuple[Estimate, ...]
    cache_bytes_per_token: float
    cache_bytes: float
    epochs: float | None
    best: str
    why: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, with each estimate's memory in all."""
        content = asdict(self)
        for estimate, entry in zip(self.estimates, content["estimates"], strict=True):
            entry["memory"]["total"] = estimate.memory.total
        return content


def make_plan(config: RunConfig, gpus: int, hardware: Hardware, storage: Storage | None = None) -> Plan:
    """Plan a run on a number of GPUs. Raises ConfigError where vocabularies are not known or nothing fits."""
    if gpus < 1:
        raise ConfigError(f"--gpus must be positive, got {gpus}")
    storage = storage or Storage()
    manifest = _manifest(config)
    student, teachers = shapes(config, manifest)
    setting = Setting(config, hardware, gpus, student, teachers)
    kinds = (own_layout(setting), remote(setting), cached(setting, storage)) if teachers else ()
    estimates = (colocated(setting), *kinds)
    per_token = sum(bytes_per_token(storage, teacher.model.hidden_size) for teacher in teachers)
    epochs = _epochs(config, manifest, setting.tokens)
    tokens = setting.teacher_tokens * config.train.steps / max(epochs or 1.0, 1.0)
    best, why = _choice(estimates, epochs)
    return Plan(
        gpus=gpus,
        parameters={
            "student": student.parameters,
            **{entry.name: shape.parameters for entry, shape in zip(config.teachers, teachers, strict=True)},
        },
        tokens_per_step=setting.tokens,
        estimates=estimates,
        cache_bytes_per_token=per_token,
        cache_bytes=per_token * tokens,
        epochs=epochs,
        best=best,
        why=why,
    )


def shapes(config: RunConfig, manifest: Manifest | None) -> tuple[Shape, tuple[Shape, ...]]:
    """The models, uncut. Raises ConfigError where neither the config nor prepared data say how many ids one has."""
    sides = [] if manifest is None else prepared_teachers(config.teachers, manifest, config.data.parts[0].path)
    sizes = [None if manifest is None else manifest.student.vocab_size, *(side.vocab_size for side in sides)]
    sizes += [None] * (1 + len(config.teachers) - len(sizes))
    names = ["student", *(f"teachers.{i}.model" for i in range(len(config.teachers)))]
    models = [config.student, *(teacher.model for teacher in config.teachers)]
    student, *teachers = (_shape(m, name, size) for m, name, size in zip(models, names, sizes, strict=True))
    return student, tuple(teachers)


def _shape(model: ModelConfig, name: str, prepared: int | None) -> Shape:
    size = model.vocab_size or prepared
    if size is None:
        raise ConfigError(f"{name}.vocab_size is null and the data is not prepared here; set it for the plan")
    return Shape(model, size)


def _manifest(config: RunConfig) -> Manifest | None:
    """Of the first data, where it is prepared here."""
    try:
        return PreparedData.open(config.data.parts[0].path).manifest
    except DataError:
        return None


def _epochs(config: RunConfig, manifest: Manifest | None, tokens_per_step: int) -> float | None:
    if manifest is None or len(config.data.parts) > 1:
        return None
    return tokens_per_step * config.train.steps / max(manifest.student.tokens, 1)


def _choice(estimates: tuple[Estimate, ...], epochs: float | None) -> tuple[str, str]:
    """Which kind, and why: the simplest of those that are nearly as fast as the fastest."""
    possible = [estimate for estimate in estimates if not estimate.why_not]
    if not possible:
        reasons = "; ".join(f"{estimate.kind}: {estimate.why_not}" for estimate in estimates)
        raise ConfigError(f"nothing fits: {reasons}; take more GPUs, or a smaller micro batch or sequence length")
    live = [estimate for estimate in possible if estimate.kind != "cached"]
    reread = epochs is not None and epochs > 1.5
    candidates = possible if reread or not live else live
    fastest = min(candidate.step_seconds for candidate in candidates)
    chosen = next(candidate for candidate in candidates if candidate.step_seconds <= MARGIN * fastest)
    others = [f"{e.kind} does not fit ({e.why_not})" for e in estimates if e.why_not]
    others += [
        f"{e.kind} takes {e.step_seconds / chosen.step_seconds:.2f} x its time"
        for e in candidates
        if e is not chosen and e.step_seconds > MARGIN * chosen.step_seconds
    ]
    if chosen.kind == "cached":
        others.append("the data is read more than once" if reread else "only what is stored of the teacher fits")
    elif any(e.kind == "cached" for e in possible):
        others.append("a cache would pay only if the data were read again, by this run or another")
    return chosen.kind, "; ".join(others) or "it is as fast as any other"
