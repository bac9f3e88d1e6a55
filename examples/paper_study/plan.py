"""What the study compares: settings, the losses of each, and the runs that they come to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from nemo_xtoken.config import RunConfig
from nemo_xtoken.config_io import from_dict
from nemo_xtoken.errors import ConfigError

Tree = dict[str, Any]
HERE = Path(__file__).parent
WORK = Path("paper_study")
VARIANT_KEYS = {"teachers", "weights", "loss", "teacher", "run", "projection"}
MODEL_OF_TEACHER = "teacher.yaml"
STUDENT = "student.yaml"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One way to train the student of a setting.

    student     the tokenizer of the setting's student
    pretrained  whether the student has been trained before, on text of the teachers', by cross-entropy
    teachers    names of the teachers, none for cross-entropy alone
    weights     alpha of each
    loss, teacher, run  keys over those of the loss, of every teacher and of the run
    projection  options of `nemo-xtoken projection build` other than its own
    """

    name: str
    student: str
    teachers: tuple[str, ...]
    pretrained: bool = False
    weights: tuple[float, ...] = ()
    loss: Tree = field(default_factory=dict[str, Any])
    teacher: Tree = field(default_factory=dict[str, Any])
    run: Tree = field(default_factory=dict[str, Any])
    projection: Tree = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher: the tokenizer that it was trained with, the seed and the text of its training.

    text   all of the teachers' text, or the part of it that is problems, or sums
    steps  of its training; None: those of teacher.yaml
    """

    name: str
    tokenizer: str
    seed: int
    text: Literal["all", "problems", "sums"] = "all"
    steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """The whole of study.yaml; `student` is the tokenizer of the students of settings that name none.

    rates      that the losses of a setting are searched at, by its name
    compares   what the losses of a setting are, by its name
    baselines  which of them the others are compared with
    titles     of losses, by their names
    """

    seeds: tuple[int, ...]
    search_seed: int
    rates: Mapping[str, tuple[float, ...]]
    student: str
    teachers: Mapping[str, Teacher]
    settings: Mapping[str, Mapping[str, Loss]]
    compares: Mapping[str, str]
    baselines: Mapping[str, str]
    titles: Mapping[str, str]

    @property
    def tokenizers(self) -> list[str]:
        """Every tokenizer that some model has."""
        return sorted({*self.students, *(teacher.tokenizer for teacher in self.teachers.values())})

    @property
    def students(self) -> list[str]:
        """The tokenizers of all students."""
        return sorted({loss.student for named in self.settings.values() for loss in named.values()})


@dataclass(frozen=True)
class Trial:
    """One student: a loss of a setting, trained at a rate from a seed."""

    setting: str
    loss: Loss
    rate: float
    seed: int

    @property
    def folder(self) -> Path:
        """Where it is trained."""
        return WORK / "runs" / self.setting / self.loss.name / f"rate-{self.rate:g}-seed-{self.seed}"


def read_study(path: Path = HERE / "study.yaml") -> Study:
    """Reads and checks study.yaml. Raises ConfigError."""
    tree = _yaml(path)
    teachers = {name: Teacher(name=name, **entry) for name, entry in tree["teachers"].items()}
    settings = {
        setting: {
            name: _loss(f"{setting}.{name}", name, entry, {"student": tree["student"], **body})
            for name, entry in losses(body)
        }
        for setting, body in tree["settings"].items()
    }
    for setting, named in settings.items():
        for loss in named.values():
            unknown = set(loss.teachers) - teachers.keys()
            if unknown:
                raise ConfigError(f"{path}: {setting}.{loss.name}: no such teacher: {', '.join(sorted(unknown))}")
    if untitled := {name for named in settings.values() for name in named} - tree["titles"].keys():
        raise ConfigError(f"{path}: expected a title of every loss, there is none of {', '.join(sorted(untitled))}")
    return Study(
        seeds=tuple(tree["seeds"]),
        search_seed=tree["search"]["seed"],
        rates={name: tuple(body.get("rates", tree["search"]["rates"])) for name, body in tree["settings"].items()},
        student=tree["student"],
        teachers=teachers,
        settings=settings,
        compares={name: body.get("compares", tree["compares"]) for name, body in tree["settings"].items()},
        baselines={name: body.get("baseline", tree["baseline"]) for name, body in tree["settings"].items()},
        titles=tree["titles"],
    )


def losses(setting: Tree) -> Iterator[tuple[str, Tree]]:
    """The losses of a setting by name."""
    yield from setting["losses"].items()


def run_config(study: Study, trial: Trial) -> RunConfig:
    """The run that trains a trial. Raises ConfigError where the study's keys are none of a run's."""
    return from_dict(RunConfig, run_tree(study, trial))


def run_tree(study: Study, trial: Trial) -> Tree:
    """The keys of that run which the study sets."""
    loss = trial.loss
    teachers = [_teacher(study, study.teachers[name], loss, weight) for name, weight in _weighted(loss)]
    own = {
        "run_dir": str(trial.folder),
        "teachers": teachers,
        "data": {"path": str(student_data(study, loss.student, "student_train")), "seed": trial.seed},
        "optimizer": {"lr": trial.rate},
        "train": {"seed": trial.seed},
    }
    if loss.pretrained:
        own["student_checkpoint"] = pretraining_tree(study, loss.student, trial.seed)["run_dir"]
    return _merged(_yaml(HERE / STUDENT), own, loss.run)


def pretraining_config(study: Study, student: str, seed: int) -> RunConfig:
    """The run that the students of a tokenizer and a seed have behind them in settings that ask for it."""
    return from_dict(RunConfig, pretraining_tree(study, student, seed))


def pretraining_tree(study: Study, student: str, seed: int) -> Tree:
    """The keys of that run which the study sets."""
    own = {
        "run_dir": str(WORK / "students" / f"seed-{seed}{_unless_usual(study, student)}"),
        "data": {"path": str(teacher_data(student)), "seed": seed},
        "train": {"seed": seed},
    }
    return _merged(_yaml(HERE / STUDENT), own)


def teacher_config(teacher: Teacher) -> RunConfig:
    """The run that trains a teacher."""
    return from_dict(RunConfig, teacher_tree(teacher))


def teacher_tree(teacher: Teacher) -> Tree:
    """The keys of that run which the study sets."""
    own = {
        "run_dir": str(teacher_folder(teacher.name)),
        "data": {"path": str(teacher_data(teacher.tokenizer, teacher.text)), "seed": teacher.seed},
        "train": {"seed": teacher.seed} | ({} if teacher.steps is None else {"steps": teacher.steps}),
    }
    return _merged(_yaml(HERE / MODEL_OF_TEACHER), own)


def teacher_folder(name: str) -> Path:
    """Where a teacher is trained."""
    return WORK / "teachers" / name


def teacher_data(tokenizer: str, part: str = "all") -> Path:
    """The teachers' text, or a part of it, prepared for a model of a tokenizer alone."""
    return WORK / "data" / "-".join(["teacher_train", tokenizer, *([] if part == "all" else [part])])


def student_data(study: Study, student: str, text: str) -> Path:
    """The text prepared for students of a tokenizer."""
    return WORK / "data" / f"{text}{_unless_usual(study, student)}"


def projection_file(study: Study, student: str, teacher: Teacher, options: Tree) -> Path:
    """The file of W for a student's tokenizer, a teacher and options of building it."""
    suffix = "".join(f"-{key}-{value}" for key, value in sorted(options.items()))
    return WORK / "projections" / f"{teacher.tokenizer}{_unless_usual(study, student)}{suffix}.safetensors"


def fingerprint(study: Study, trial: Trial, text: str) -> str:
    """16 hex digits of all that decides a trial's numbers but the code; `text` is the text's hash.

    Two settings share the trials that are the same in both, such as the student alone.
    """
    run = run_tree(study, trial) | {"run_dir": ""}
    trained = [teacher_tree(study.teachers[name]) for name in trial.loss.teachers]
    if trial.loss.pretrained:
        trained.append(pretraining_tree(study, trial.loss.student, trial.seed))
    content = json.dumps([run, trained, text], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _unless_usual(study: Study, student: str) -> str:
    return "" if student == study.student else f"-student-{student}"


def _loss(where: str, name: str, entry: Tree, setting: Tree) -> Loss:
    unknown = entry.keys() - VARIANT_KEYS
    if unknown:
        raise ConfigError(f"{where}: expected {', '.join(sorted(VARIANT_KEYS))}, got {', '.join(sorted(unknown))}")
    chosen = tuple(entry.get("teachers", setting["teachers"]))
    weights = tuple(entry.get("weights", [1.0] * len(chosen)))
    if len(weights) != len(chosen):
        raise ConfigError(f"{where}: expected a weight for each of {len(chosen)} teachers, got {len(weights)}")
    rest = {key: value for key, value in entry.items() if key not in ("teachers", "weights")}
    student, pretrained = setting["student"], bool(setting.get("pretrained"))
    return Loss(name=name, student=student, pretrained=pretrained, teachers=chosen, weights=weights, **rest)


def _weighted(loss: Loss) -> list[tuple[str, float]]:
    return list(zip(loss.teachers, loss.weights, strict=True))


def _teacher(study: Study, teacher: Teacher, loss: Loss, weight: float) -> Tree:
    own = {
        "name": teacher.name,
        "prepared_as": teacher.tokenizer,
        "checkpoint": str(teacher_folder(teacher.name)),
        "projection": str(projection_file(study, loss.student, teacher, loss.projection)),
        "model": _yaml(HERE / MODEL_OF_TEACHER)["student"],
        "weight": weight,
        "loss": loss.loss,
    }
    return _merged(own, loss.teacher)


def _yaml(path: Path) -> Tree:
    return _plain(OmegaConf.load(path))


def _merged(*trees: Tree) -> Tree:
    return _plain(OmegaConf.merge(*trees))


def _plain(tree: Any) -> Tree:
    plain = OmegaConf.to_container(tree)
    if not isinstance(plain, dict):
        raise ConfigError(f"expected a mapping, got {type(plain).__name__}")
    return {str(key): value for key, value in plain.items()}
