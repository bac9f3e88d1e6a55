"""Recipes, `extend`, overrides and what is refused: everything that is decided before a job starts."""

# pyright: reportMissingImports=false
from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.bridge.models.gemma.gemma2_provider import Gemma2ModelProvider
from megatron.bridge.training.config import MockGPTDatasetConfig
from megatron.bridge.training.mixed_precision import get_mixed_precision_config
from megatron.core.transformer.enums import AttnMaskType

from nemo_xtoken.config import LossConfig
from nemo_xtoken.errors import ConfigError, UnavailableError
from nemo_xtoken.integrations.bridge import models, recipes, run, versions
from nemo_xtoken.integrations.bridge.arithmetic import check_layout
from nemo_xtoken.integrations.bridge.config import BridgeTeacher, DistillationContainer
from nemo_xtoken.integrations.bridge.dataset import TeacherInData
from nemo_xtoken.integrations.bridge.distillation import extend
from nemo_xtoken.integrations.bridge.limits import refuse, refuse_teacher
from nemo_xtoken.integrations.bridge.overrides import override
from nemo_xtoken.integrations.bridge.published import NEMOTRON4_15B, SHAPES, published
from nemo_xtoken.integrations.megatron.context_parallel import ContextParallelAttention
from tests.bridge import tiny
from tests.conftest import CHECKOUT

pytestmark = pytest.mark.timeout(400)

NEMO_RECIPES = CHECKOUT / "nemo_xtoken" / "integrations" / "nemo" / "recipes.py"
GPUS = {name: int(name.rpartition("_")[2].removesuffix("gpu")) for name in recipes.RECIPES if name != "tiny_cpu"}
LLAMA32_1B_FROM_QWEN3_4B = "llama32_1b_from_qwen3_4b_8gpu"
ON_MANY_NODES = {"mistral_nemo_12b_from_qwen3_32b_128gpu", "nemotron4_15b_from_qwen3_32b_128gpu"}
MORE_THAN_NEMO = {"mistral_7b_from_qwen3_32b"}
QWEN3 = "Qwen/Qwen3-4B"


def nemo_recipes() -> tuple[set[str], dict[str, int]]:
    """The students and teachers of NeMo's recipes, whose environment is another one, and their numbers, by reading."""
    tree = ast.parse(NEMO_RECIPES.read_text(encoding="utf-8"))
    names: set[str] = set()
    numbers: dict[str, int] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            students = [
                ast.literal_eval(argument.annotation.slice)  # type: ignore[union-attr]
                for argument in node.args.args
                if argument.arg == "student_model"
            ]
            teacher = node.name.partition("_from_")[2]
            names |= {f"{student}_from_{teacher}" for student in students[0]} if students else {node.name}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.Tuple):
            (target,) = node.targets
            values = ast.literal_eval(node.value)
            keys = [ast.unparse(name) for name in getattr(target, "elts", [target])]
            numbers |= dict(zip(keys, values if isinstance(values, tuple) else [values], strict=True))
    return names, numbers


def test_the_recipes_are_those_of_nemo() -> None:
    names, numbers = nemo_recipes()
    assert len(names) == 6
    assert {name.rpartition("_")[0] for name in GPUS} == (names - {"tiny_cpu"}) | MORE_THAN_NEMO
    assert set(recipes.RECIPES) == {*GPUS, "tiny_cpu"}
    config = recipes.RECIPES[LLAMA32_1B_FROM_QWEN3_4B]()
    data = config.dataset.data
    assert numbers == {
        "GLOBAL_BATCH_SIZE": config.train.global_batch_size,
        "SEQ_LENGTH": data.student_sequence_length,
        "TEACHER_SEQ_LENGTH": data.teacher_sequence_length,
        "STEPS": config.train.train_iters,
    }


@pytest.mark.parametrize("name", GPUS)
def test_a_recipe_has_the_papers_settings_and_a_layout_that_comes_out_even(name: str) -> None:
    config = recipes.RECIPES[name]()
    assert check_layout(config, GPUS[name]) >= 1
    train, optimizer, scheduler, data = config.train, config.optimizer, config.scheduler, config.dataset.data
    assert train.global_batch_size == 768
    assert (data.student_sequence_length, data.teacher_sequence_length) == (4096, 4096 if "phi4" in name else 5120)
    assert optimizer.lr == (2e-5 if name in ON_MANY_NODES else 5e-5)
    assert (optimizer.weight_decay, optimizer.clip_grad) == (0.1, 1.0)
    assert (optimizer.adam_beta1, optimizer.adam_beta2) == (0.9, 0.98)
    assert (scheduler.lr_decay_style, scheduler.lr_warmup_iters) == ("cosine", 4000)
    assert config.checkpoint.save == f"checkpoints/{name}"
    assert config.mixed_precision == "bf16_mixed"
    assert config.model.calculate_per_token_loss
    assert not config.ddp.average_in_collective
    assert config.model.seq_length == 4096


PRESETS = {
    "meta-llama/Llama-3.2-1B": ("llama.llama_provider", "Llama32ModelProvider1B"),
    "meta-llama/Llama-3.2-3B": ("llama.llama_provider", "Llama32ModelProvider3B"),
    "Qwen/Qwen3-4B": ("qwen.qwen_provider", "Qwen3ModelProvider4B"),
    "Qwen/Qwen3-32B": ("qwen.qwen_provider", "Qwen3ModelProvider32B"),
    "mistralai/Mistral-7B-v0.3": ("mistral.mistral_provider", "MistralModelProvider"),
    NEMOTRON4_15B: ("nemotron.nemotron_provider", "Nemotron4ModelProvider15B"),
}
NAMED_OTHERWISE = {"hf_model_id", "vocab_size", "kv_channels", "max_position_embeddings"}
NAMED_OTHERWISE |= {"use_transformer_engine_op_fuser", "bf16", "params_dtype", "autocast_dtype"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_model_is_bridges_own_preset(name: str) -> None:
    module, preset = PRESETS[name]
    own = getattr(pytest.importorskip(f"megatron.bridge.models.{module}", reason="0.6 has no presets"), preset)()
    ours = published(name)
    for field in fields(own):
        value = getattr(own, field.name)
        if field.name not in NAMED_OTHERWISE and not field.name.startswith("_") and not callable(value):
            assert getattr(ours, field.name) == value, field.name
    assert ours.kv_channels == (own.kv_channels or own.hidden_size // own.num_attention_heads)


def test_every_recipe_is_among_those_that_are_built_here(folder: Path) -> None:
    assert {*PRESETS, recipes.PHI4_MINI, "mistralai/Mistral-Nemo-Base-2407"} == set(SHAPES)
    tiny_cpu = recipes.tiny_cpu(str(folder / "data"), student=str(folder / "llama"), teacher=str(folder / "qwen3"))
    assert check_layout(tiny_cpu, 1) == 1


@pytest.mark.parametrize(("name", "layers", "hidden"), [("mistral_nemo_12b", 40, 5120), ("nemotron4_15b", 32, 6144)])
def test_the_recipes_of_many_nodes_are_cut_in_every_way(name: str, layers: int, hidden: int) -> None:
    config = recipes.RECIPES[f"{name}_from_qwen3_32b_128gpu"]()
    model = config.model
    sizes = (model.tensor_model_parallel_size, model.pipeline_model_parallel_size, model.context_parallel_size)
    assert sizes == (8, 4, 2)
    assert (model.num_layers, model.hidden_size, model.kv_channels, model.window_size) == (layers, hidden, 128, None)
    assert check_layout(config, 128) == 2
    with pytest.raises(ConfigError, match="the number of ranks, 96, is not divisible"):
        check_layout(config, 96)


def test_the_recipes_with_phi() -> None:
    assert recipes.llama32_1b_from_phi4_mini_8gpu().teachers[0].loss.mode == "h_kl"
    config = recipes.llama32_1b_from_phi4_mini_and_llama32_3b_8gpu()
    phi, llama = config.teachers
    assert [(teacher.weight, teacher.loss.mode) for teacher in (phi, llama)] == [(0.8, "h_kl"), (0.2, "same_tokenizer")]
    assert config.dataset.teachers == (TeacherInData("phi4_mini", None), TeacherInData("llama32_3b", None))
    assert phi.provider.longest_sequence == 4096
    assert (phi.provider.rotary_percent, phi.provider.num_query_groups) == (0.75, 8)
    assert phi.provider.rotary_factor == pytest.approx((1 + 5 / 12) ** 0.5)  # log(32) / log(4096)


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize(
    "precision",
    [
        "bf16_with_fp8_current_scaling_mixed",
        "bf16_with_fp8_delayed_scaling_mixed",
        "bf16_with_fp8_subchannel_scaling_mixed",
        "bf16_with_mxfp8_mixed",
    ],
)
def test_an_fp8_student_has_a_bf16_teacher(name: str, precision: str) -> None:
    config = recipes.RECIPES[name](precision=precision)
    assert check_layout(config, GPUS[name]) >= 1
    mixed = get_mixed_precision_config(config.mixed_precision)
    mixed.setup(config.model, config.optimizer, config.ddp)
    assert config.model.fp8 is not None
    assert all(teacher.provider.fp8 is None and teacher.provider.bf16 for teacher in config.teachers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.micro_batch_size": 0}, "train.micro_batch_size: expected a number of at least 1, got 0"),
        ({"train.train_iters": -3}, "train.train_iters: expected a number of at least 1, got -3"),
        ({"model.tensor_model_parallel_size": 0}, "model.tensor_model_parallel_size: expected a number of at least 1"),
        ({"train.global_batch_size": 766}, "train.global_batch_size, 766, is not divisible"),
        ({"model.tensor_model_parallel_size": 3}, "the number of ranks, 32, is not divisible"),
        (
            {"model.pipeline_model_parallel_size": 4, "model.num_layers": 30},
            "num_layers of the student, 30, is",
        ),
        ({"model.num_query_groups": 4}, "num_query_groups of the student, 4, is not divisible"),
        ({"model.vocab_size": 32001}, "vocab_size of the student, 32001, is not divisible"),
        ({"data.teacher_sequence_length": 4092}, "the sequence length of teacher 'qwen3_32b', 4092, is not divisible"),
    ],
)
def test_a_layout_that_does_not_come_out_even_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    config = override(recipes.mistral_7b_from_qwen3_32b_32gpu(), [f"{key}={value}" for key, value in change.items()])
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        check_layout(config, 32)


def test_extend_leaves_the_users_choices_alone(folder: Path) -> None:
    base = tiny.student_config(folder, "extended", tp=2, pp=1, steps=7, train={"micro_batch_size": 4})
    before = (base.model, base.optimizer, base.scheduler, base.train, base.checkpoint, base.logger)
    teacher = BridgeTeacher(model=str(folder / "qwen3"))
    config = extend(base, [teacher], tiny.data_config(folder), LossConfig(mode="gold"))
    assert all(
        a is b
        for a, b in zip(
            before,
            (config.model, config.optimizer, config.scheduler, config.train, config.checkpoint, config.logger),
            strict=True,
        )
    )
    assert config.teachers[0].loss.mode == "gold"
    assert config.dataset.num_workers == 0
    assert isinstance(base.dataset, MockGPTDatasetConfig)


def test_overrides_are_bridges_and_ours() -> None:
    config = recipes.llama32_1b_from_qwen3_4b_8gpu()
    hooks = len(config.model._pre_wrap_hooks)
    changed = override(
        config,
        ["train.train_iters=5", "model.tensor_model_parallel_size=4", "teachers.0.loss.mode=gold", "data.path=/there"],
    )
    assert (changed.train.train_iters, changed.model.tensor_model_parallel_size) == (5, 4)
    assert changed.teachers[0].loss.mode == "gold"
    assert changed.teachers[0].provider is not None
    assert changed.dataset.data.path == "/there"
    assert len(changed.model._pre_wrap_hooks) == hooks
    other = override(changed, ["teachers.0.model=Qwen/Qwen3-8B", "balance.mode=fixed"])
    assert (other.teachers[0].model, other.teachers[0].provider, other.balance.mode) == ("Qwen/Qwen3-8B", None, "fixed")
    assert override(other, ["teachers=[]"]).teachers == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teachers.0.loss.mod=gold", r"unknown key teachers.0.loss.mod; did you mean teachers.0.loss.mode\?"),
        ("teachers.0.loss.mode=gold teachers.0.learn_projection=true", "learn_projection needs loss.mode p_kl"),
        ("balance.mode=often", "balance.mode: expected one of dynamic, micro_batch, fixed"),
        ("train.train_iter=5", "train_iter"),
        ("train.train_iters=many", "train.train_iters: expected int, such as 30000, got 'many'"),
        ("optimizer.lr=fast", "optimizer.lr: expected float, such as 5e-05, got 'fast'"),
        ("model.tensor_model_parallel_size=1.5", "model.tensor_model_parallel_size: expected int, such as 2, got 1.5"),
        ("teachers.1.weight=2", "there is no place"),
    ],
)
def test_a_wrong_override_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(recipes.llama32_1b_from_qwen3_4b_8gpu(), text.split())


def set_virtual_stages(config: DistillationContainer) -> None:
    config.model.virtual_pipeline_model_parallel_size = 2


def set_mock_data(config: DistillationContainer) -> None:
    config.dataset = recipes._placeholder(0)


def set_cyclic(config: DistillationContainer) -> None:
    config.dataset.dataloader_type = "cyclic"


def set_fsdp(config: DistillationContainer) -> None:
    config.dist.use_megatron_fsdp = True


def set_own_groups(config: DistillationContainer) -> None:
    config.dist.use_decentralized_pg = True


def set_multi_token_prediction(config: DistillationContainer) -> None:
    config.model.mtp_num_layers = 1


def set_cuda_graphs(config: DistillationContainer) -> None:
    config.model.cuda_graph_impl = "local"


def set_other_checkpoints(config: DistillationContainer) -> None:
    config.checkpoint.ckpt_format = "fsdp_dtensor"


def set_window_over_ranks(config: DistillationContainer) -> None:
    config.model.window_size, config.model.context_parallel_size = (512, 0), 2


def set_nowhere_for_w(config: DistillationContainer) -> None:
    config.checkpoint.save = None


def set_one_name(config: DistillationContainer) -> None:
    config.teachers = (config.teachers[0], config.teachers[0])


def set_fp16(config: DistillationContainer) -> None:
    config.teachers = (replace(config.teachers[0], learn_projection=True),)
    refuse(config)
    config.mixed_precision = "fp16_mixed"


def set_reruns(config: DistillationContainer) -> None:
    config.teachers = (replace(config.teachers[0], learn_projection=True),)
    config.rerun_state_machine.rerun_mode = "validate_results"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_one_name, "teachers of one name"),
        (set_fp16, "learn_projection with fp16"),
        (set_reruns, "learn_projection with rerun_state_machine.rerun_mode=validate_results"),
        (set_virtual_stages, "virtual_pipeline_model_parallel_size"),
        (set_mock_data, "dataset MockGPTDatasetConfig"),
        (set_cyclic, "dataloader_type=cyclic"),
        (set_fsdp, "FSDP"),
        (set_own_groups, "use_decentralized_pg"),
        (set_multi_token_prediction, "multi-token prediction"),
        (set_cuda_graphs, "cuda_graph_impl=local"),
        (set_other_checkpoints, "ckpt_format=fsdp_dtensor"),
        (set_window_over_ranks, "attention in a window"),
        (set_nowhere_for_w, "a teacher without a projection"),
    ],
)
def test_what_does_not_work_is_refused_with_its_reason(change: Any, message: str) -> None:
    config = recipes.llama32_1b_from_qwen3_4b_8gpu()
    refuse(config)
    change(config)
    with pytest.raises(ConfigError, match=f"{message}.* does not work with distillation inside Megatron-Bridge: .+"):
        refuse(config)


def test_a_teacher_that_can_not_stand_beside_the_student_is_refused() -> None:
    student = published(recipes.LLAMA32_1B)
    refuse_teacher("qwen", published(QWEN3), student)
    experts = published(QWEN3)
    experts.num_moe_experts = 8
    refuse_teacher("experts", experts, student)
    experts.expert_model_parallel_size = 4
    with pytest.raises(ConfigError, match="teacher 'experts' has experts and expert_model_parallel_size is 4"):
        refuse_teacher("experts", experts, student)
    wide = published(QWEN3)
    wide.tensor_model_parallel_size = 2
    with pytest.raises(ConfigError, match="tensor_model_parallel_size 2 must be the student's, 1"):
        refuse_teacher("wide", wide, student)
    with pytest.raises(ConfigError, match="is of Gemma 2's architecture: Bridge's attention for it"):
        refuse_teacher("gemma", Gemma2ModelProvider(num_layers=2, hidden_size=8, num_attention_heads=2), student)
    with pytest.raises(ConfigError, match="expected a model or a provider"):
        BridgeTeacher()


def test_layers_on_cuda_are_the_providers_own_with_a_mask() -> None:
    provider = published(QWEN3)
    provider.transformer_layer_spec = models.local_layers
    models.adapt(provider, torch.device("cuda"))
    models.adapt(provider, torch.device("cuda"))
    assert isinstance(provider.transformer_layer_spec, partial)
    assert provider.transformer_layer_spec.args == (models.local_layers,)
    provider.context_parallel_size = 2
    spec = provider.transformer_layer_spec(provider)
    for layer in spec.layer_specs:
        assert layer.submodules.self_attention.params["attn_mask_type"] is AttnMaskType.arbitrary
        assert layer.submodules.self_attention.submodules.core_attention is ContextParallelAttention


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nemo_xtoken.integrations.bridge.run", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


def test_the_command_tells_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    result = command("--device", "cpu", "llama32_9b", cwd=tmp_path)
    assert (result.returncode, result.stderr.splitlines()[-1][:34]) == (2, "error: there is no recipe 'llama32")


def test_the_parts_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--device", "cpu", "--list"]) == 0
    assert LLAMA32_1B_FROM_QWEN3_4B in capsys.readouterr().out
    assert run.main(["--device", "cpu", "--check", "16", LLAMA32_1B_FROM_QWEN3_4B]) == 0
    assert "data parallel size 8" in capsys.readouterr().out
    assert run.main(["--device", "cpu", "--check", "10", LLAMA32_1B_FROM_QWEN3_4B]) == 2
    assert "train.global_batch_size, 768, is not divisible" in capsys.readouterr().err
    assert run.main(["--device", "cpu", LLAMA32_1B_FROM_QWEN3_4B, "steps=many"]) == 2
    assert "steps: expected an integer, got 'many'" in capsys.readouterr().err
    assert run.main(["--device", "cpu", LLAMA32_1B_FROM_QWEN3_4B, "data"]) == 2
    assert "expected key=value" in capsys.readouterr().err


def test_a_release_whose_exports_were_not_tested_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    versions.check_export()
    monkeypatch.setattr(versions, "version", lambda name: "0.6.2")
    versions.check_export()
    monkeypatch.setattr(versions, "version", lambda name: "0.7.0")
    with pytest.raises(UnavailableError, match=r"tested with Megatron-Bridge 0\.3\.1 and 0\.6\.2 only, and 0\.7\.0 is"):
        versions.check_export()


def test_weights_are_read_when_the_model_is_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = models.provider_from(str(folder / "qwen3"), load_weights=False)
    models.with_weights(provider, str(folder / "nowhere"))
    with pytest.raises(ConfigError, match=r"no model at .*nowhere: expected a directory with a config.json"):
        provider.pre_wrap_hook([])

    def hub(*_: Any, **__: Any) -> None:
        raise OSError("no such repository")

    monkeypatch.setattr(models.AutoBridge, "from_hf_pretrained", hub)
    with pytest.raises(ConfigError, match="can't import a-name, which is no directory here: no such repository"):
        models.provider_from("a-name")


def test_weights_of_another_shape_are_one_clear_error(folder: Path) -> None:
    found = models.provider_from(str(folder / "qwen3"), load_weights=False)
    models.check_shape("there", found, found)
    with pytest.raises(ConfigError, match=r"there is another model than expected: its num_layers is 3, and .* is 32"):
        models.check_shape("there", found, published(NEMOTRON4_15B))


def test_fp8_without_transformer_engine_is_refused_when_layers_are_made() -> None:
    from nemo_xtoken.integrations.bridge.models import local_layers

    with pytest.raises(UnavailableError, match="recipe tensorwise, which needs transformer-engine"):
        local_layers(SimpleNamespace(fp8="hybrid", fp8_recipe="tensorwise"))
