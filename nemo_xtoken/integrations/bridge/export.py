"""A distilled student as a Hugging Face model, with its tokenizer, and W and the run's config beside it."""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from megatron.bridge import AutoBridge
from megatron.bridge.training.model_load_save import temporary_distributed_context
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection

from nemo_xtoken.config import ParallelConfig
from nemo_xtoken.errors import CheckpointError, ConfigError, require
from nemo_xtoken.integrations.bridge.models import adapt, check_conversion, first_line
from nemo_xtoken.integrations.bridge.placement import device
from nemo_xtoken.integrations.bridge.teacher import initial_projection_path
from nemo_xtoken.integrations.bridge.versions import check_export
from nemo_xtoken.integrations.megatron.head_tap import head_weight
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.learnt_projection import LearntProjection
from nemo_xtoken.projection import ProjectionMatrix

EMBEDDING = "embedding.word_embeddings.weight"
FOLDER = "distillation"
LATEST = "latest_checkpointed_iteration.txt"


def export(checkpoint: Path, source: str, out: Path) -> None:
    """Write the student of a checkpoint as a Hugging Face model.

    checkpoint  what `checkpoint.save` was, for its latest iteration, or one `iter_...` directory in it
    source      the Hugging Face model that the student was made from; its config and tokenizer are written, too
    out         there whole or not at all; `out/distillation` gets the run's config and W, also as it was learnt
    Raises CheckpointError where the checkpoint can't be read or is of another model, ConfigError for a source that
    can't be read or an `out` that is there already, UnavailableError for a release whose exports are wrong.
    """
    check_export()
    require(not out.exists(), f"{out} is there already; name a directory that is not, or remove it")
    iteration = find_iteration(checkpoint)
    bridge = _bridge_of(source)
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    _write(bridge, iteration, source, unfinished)
    unfinished.replace(out)


def _bridge_of(source: str) -> Any:
    try:
        return AutoBridge.from_hf_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(f"Megatron-Bridge can't read the source {source}: {first_line(error)}") from error


def _write(bridge: Any, iteration: Path, source: str, out: Path) -> None:
    with _one_process():
        model = load_student(bridge, iteration, source)
        check_conversion(bridge, [model])
        bridge.save_hf_pretrained([model], out, show_progress=False, strict=False)
        folder = out / FOLDER
        folder.mkdir(exist_ok=True)
        run_config = iteration / "run_config.yaml"
        teachers = yaml.safe_load(run_config.read_text(encoding="utf-8")).get("teachers") or []
        for teacher in teachers:
            if teacher["learn_projection"]:
                _save_learnt_projection(iteration, teacher["name"], model, folder)
    _say_dtype(out / "config.json", str(model.config.params_dtype).removeprefix("torch."))
    named = [Path(teacher["projection"]) for teacher in teachers if teacher["projection"]]
    for path in [run_config, *iteration.parent.glob("projection-*.safetensors"), *named]:
        if path.is_file():  # what a config names may be gone
            shutil.copy(path, folder)


@dataclass(frozen=True)
class _Name:
    """All that loading a learnt W has to know of its teacher."""

    name: str
    projection_lr: float = 0.0


def _save_learnt_projection(iteration: Path, teacher: str, model: GPTModel, folder: Path) -> None:
    initial = ProjectionMatrix.load(initial_projection_path(iteration.parent, teacher))
    layout = Layout(ParallelConfig(), device(), ProcessGroupCollection.use_mpu_process_groups())
    learnt = LearntProjection(_Name(teacher), initial, head_weight(model), layout)
    loaded: Any = dist_checkpointing.load(learnt.sharded_state_dict(), str(iteration))
    learnt.load_state_dict(loaded)
    learnt.save(folder)


@contextmanager
def _one_process() -> Iterator[None]:
    """Megatron's groups for a job of one process, also where the caller has started one."""
    if not dist.is_initialized():
        with temporary_distributed_context(backend="gloo"):
            yield
        return
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()
    yield


def find_iteration(checkpoint: Path) -> Path:
    """The directory of one iteration. Raises CheckpointError where there is none."""
    if (checkpoint / "metadata.json").is_file():
        return checkpoint
    try:
        iteration = int((checkpoint / LATEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"expected a checkpoint directory of Megatron-Bridge at {checkpoint}, with {LATEST} or metadata.json in it"
        ) from error
    return checkpoint / f"iter_{iteration:07d}"


def load_student(bridge: Any, iteration: Path, source: str) -> GPTModel:
    """The student whole on this process, in the precision of the checkpoint."""
    provider = bridge.to_megatron_provider(load_weights=False)
    try:
        stored: Any = dist_checkpointing.load_tensors_metadata(str(iteration))
        provider.params_dtype = stored[EMBEDDING].dtype
    except Exception as error:
        raise CheckpointError(f"cannot read checkpoint {iteration}: {error}") from error
    provider.bf16, provider.fp16 = provider.params_dtype is torch.bfloat16, provider.params_dtype is torch.float16
    provider.pipeline_dtype = provider.autocast_dtype = provider.params_dtype
    provider.perform_initialization = False
    provider.seq_length = 1  # nothing is computed, so no window is too short
    adapt(provider, device())
    provider.finalize()
    (model,) = provider.provide_distributed_model(
        wrap_with_ddp=False,
        mixed_precision_wrapper=None,
        use_cpu_initialization=True,
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )
    _load_weights(model, iteration, stored, source)
    return model


def _load_weights(model: GPTModel, iteration: Path, stored: Any, source: str) -> None:
    """What layers keep besides their weights, such as FP8 scales, is not part of a Hugging Face model."""
    wanted = {name: part for name, part in model.sharded_state_dict().items() if not isinstance(part, ShardedObject)}
    for name, part in wanted.items():
        shape = tuple(getattr(part, "global_shape", ()))
        if shape and (part.key not in stored or tuple(stored[part.key].global_shape) != shape):
            raise CheckpointError(
                f"checkpoint {iteration} is not of a student made from {source}: {name} is not in it with shape "
                f"{list(shape)}"
            )
    loaded: Any = dist_checkpointing.load({"model": wanted}, str(iteration))
    missing, _ = model.load_state_dict(loaded["model"], strict=False)
    assert all(name.endswith("_extra_state") for name in missing)


def _say_dtype(config: Path, dtype: str) -> None:
    """The config is the source's, whose weights may be of another precision."""
    description = json.loads(config.read_text(encoding="utf-8"))
    description[next((name for name in ("dtype", "torch_dtype") if name in description), "torch_dtype")] = dtype
    config.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
