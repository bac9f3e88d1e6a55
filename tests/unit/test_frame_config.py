from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TeacherConfig,
    TrainConfig,
)
from nemo_xtoken.config_io import differences, from_dict, load_run, save_run, to_dict
from nemo_xtoken.errors import ConfigError

RUN = """
run_dir: out/run
student: &model
  num_layers: 2
  hidden_size: 8
  num_attention_heads: 2
teachers:
  - {model: *model, checkpoint: "${data.path}/teacher", projection: w.safetensors}
data: {path: text, student_sequence_length: 8, teacher_sequence_length: 8}
optimizer: {lr: 1e-3}
train: {steps: 3, micro_batch_size: 1, global_batch_size: 2}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def test_a_run_is_read_with_its_defaults_and_interpolations(run_file: Path) -> None:
    run = load_run(run_file)
    model = ModelConfig(num_layers=2, hidden_size=8, num_attention_heads=2)
    assert run == RunConfig(
        run_dir="out/run",
        student=model,
        teachers=(TeacherConfig(model=model, checkpoint="text/teacher", projection="w.safetensors"),),
        data=DataConfig(path="text", student_sequence_length=8, teacher_sequence_length=8),
        optimizer=OptimizerConfig(lr=0.001),
        train=TrainConfig(steps=3, micro_batch_size=1, global_batch_size=2),
    )


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("optimizer.lr=1e-2", "optimizer.lr", 0.01),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("optimizer.adam_eps=1E-9", "optimizer.adam_eps", 1e-9),
        ("train.bf16=true", "train.bf16", True),
        ("teachers=[]", "teachers", []),
        ("teachers.0.loss.mode=h_kl", "teachers.0.loss.mode", "h_kl"),
        ("teachers.0.loss.teacher_top_k=64", "teachers.0.loss.teacher_top_k", 64),
        ("teachers.0.prepared_as=qwen", "teachers.0.prepared_as", "qwen"),
        (
            "data.teacher_lengths=[{teacher: qwen, sequence_length: 9}]",
            "data.teacher_lengths",
            [{"teacher": "qwen", "sequence_length": 9}],
        ),
        ("data.validation_path=held/out", "data.validation_path", "held/out"),
        ("data.validation_path=null", "data.validation_path", None),
        ("run_dir=a=b", "run_dir", "a=b"),
        ("run_dir='12'", "run_dir", "12"),
        ("data.path=other", "teachers.0.checkpoint", "other/teacher"),
        ("run_dir=${data.path}/run", "run_dir", "text/run"),
    ],
)
def test_an_override_changes_its_key(run_file: Path, override: str, key: str, expected: object) -> None:
    value: object = to_dict(load_run(run_file, [override]))
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]  # type: ignore[index]
    assert value == expected
    assert type(value) is type(expected)


def test_later_overrides_win(run_file: Path) -> None:
    assert load_run(run_file, ["train.steps=4", "train.steps=5"]).train.steps == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.lr=1", "unknown key optimiser; did you mean optimizer?"),
        ("lr=1", "unknown key lr; did you mean optimizer.lr?"),
        (
            "teachers.0.loss.temprature=1",
            "unknown key teachers.0.loss.temprature; did you mean teachers.0.loss.temperature?",
        ),
        ("data.zzzqq=1", "unknown key data.zzzqq; valid here: path, student_sequence_length"),
        ("train.steps=1.0", "train.steps: expected an integer, got 1.0"),
        ("train.steps=true", "train.steps: expected an integer, got true"),
        ("train.steps=many", "train.steps: expected an integer, got the string 'many'"),
        ("train.steps=", "train.steps: expected an integer, got null"),
        ("train.bf16=1", "train.bf16: expected true or false, got 1"),
        ("optimizer.lr='1e-3'", "optimizer.lr: expected a number, got the string '1e-3'"),
        ("optimizer.lr=.nan", "optimizer.lr: expected a number, got nan"),
        ("optimizer.weight_decay=.inf", "optimizer.weight_decay: expected a number, got inf"),
        ("optimizer.weight_decay=true", "optimizer.weight_decay: expected a number, got true"),
        ("run_dir=12", "run_dir: expected a string, got 12"),
        ("run_dir={a: b}", "run_dir: expected a string, got a group of keys"),
        ("data.path.x=3", "data.path: expected a string, got a group of keys"),
        ("student=[]", "student: expected keys of ModelConfig, got a list"),
        ("teachers=3", "teachers: expected a list, got 3"),
        ("teachers=[{}]", "missing teachers.0.model, teachers.0.checkpoint;"),
        ("teachers.0.loss.mode=pkl", "teachers.0.loss.mode: expected one of p_kl, h_kl,"),
        ("device=gpu", "device: expected one of cuda, cpu, got the string 'gpu'"),
        ("teachers.0.loss.temperature=0", "teachers.0.loss: temperature must be positive, got 0.0"),
        ("optimizer.lr=-1", "optimizer: lr must be positive, got -1.0"),
        ("student.num_layers=0", "student: num_layers must be positive, got 0"),
        (
            "parallel.tensor_model_parallel_size=3",
            "student: 2 attention heads are not divisible by tensor_model_parallel_size 3",
        ),
        ("data.path=???", "Missing mandatory value: data.path"),
        ("data.path=${nope}", "Interpolation key 'nope' not found"),
        ("steps", "override 'steps': expected key=value"),
        ("=3", "override '=3': expected key=value"),
        ("run_dir=[a", "override 'run_dir=[a': '[a' is not a YAML value"),
        ("teachers.1.weight=2", "override 'teachers.1.weight=2': there is no place teachers.1.weight"),
        ("teachers.-1.weight=2", "override 'teachers.-1.weight=2': there is no place teachers.-1.weight"),
        ("teachers.x.weight=2", "override 'teachers.x.weight=2': there is no place teachers.x.weight"),
    ],
)
def test_a_wrong_override_is_told_in_one_line(run_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_run(run_file, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "missing run_dir, student, data, optimizer, train; set it in the file or as run_dir=VALUE"),
        ("- a\n- b\n", "expected keys and values at the top, got a list"),
        ("run_dir: a\nstudent: [1\ndata: {\n", "line 3: not valid YAML"),
        ("run_dir: a\nrun_dir: b\n", "line 2: not valid YAML: found duplicate key"),
        ("run_dir: \udcff", "cannot be read"),
        ("just words", ""),
    ],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as error:
        load_run(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_directory_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_run(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_run(tmp_path)


numbers = st.floats(min_value=1e-12, max_value=1e12)


@settings(max_examples=30)
@given(
    lr=numbers,
    threshold=st.floats(min_value=0.01, max_value=1),
    path=st.text(st.characters(codec="utf-8", exclude_characters="$\\", exclude_categories=["C"])).filter(
        lambda text: text != "???"
    ),
    steps=st.integers(1, 10**9),
    top_k=st.none() | st.integers(1, 10**6),
    bf16=st.booleans(),
)
def test_a_saved_run_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    lr: float,
    threshold: float,
    path: str,
    steps: int,
    top_k: int | None,
    bf16: bool,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "a.yaml").write_text(RUN)
    run = load_run(folder / "a.yaml")
    teacher = dataclasses.replace(run.teachers[0], loss=LossConfig(teacher_top_k=top_k, hybrid_threshold=threshold))
    run = dataclasses.replace(
        run,
        run_dir=path,
        teachers=(teacher, dataclasses.replace(teacher, name="twin")),
        optimizer=OptimizerConfig(lr=lr),
        train=dataclasses.replace(run.train, steps=steps, bf16=bf16),
    )
    save_run(run, folder / "b.yaml")
    assert load_run(folder / "b.yaml") == run
    assert [entry.name for entry in sorted(folder.iterdir())] == ["a.yaml", "b.yaml"]


def test_differences_name_the_keys_in_which_runs_differ(run_file: Path) -> None:
    run = load_run(run_file)
    assert differences(run, run) == []
    other = load_run(run_file, ["train.steps=4", "teachers.0.loss.mode=gold", "optimizer.lr=2e-3"])
    assert differences(run, other) == ["teachers.0.loss.mode", "optimizer.lr", "train.steps"]
    assert differences(run, load_run(run_file, ["teachers=[]"])) == ["teachers"]


def test_plain_data_builds_any_group_and_errors_name_its_place() -> None:
    assert from_dict(OptimizerConfig, {"lr": 1}) == OptimizerConfig(lr=1.0)
    with pytest.raises(ConfigError, match=r"missing optimizer\.lr;"):
        from_dict(OptimizerConfig, {}, "optimizer")
    with pytest.raises(ConfigError, match="config: expected keys of OptimizerConfig, got 3"):
        from_dict(OptimizerConfig, 3)


def test_an_integer_for_a_number_becomes_a_float() -> None:
    value = from_dict(OptimizerConfig, {"lr": 1}).lr
    assert type(value) is float
    assert math.isclose(value, 1.0)
