"""Hugging Face models in and out of NeMo checkpoints: NeMo's own conversions, around our model type."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from nemo import lightning as nl
from nemo.collections import llm
from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer
from nemo.collections.llm.gpt.model.base import GPTConfig, GPTModel
from nemo.lightning import io, teardown
from nemo.lightning.ckpt_utils import ckpt_to_context_subdir
from nemo.lightning.io.pl import ckpt_to_weights_subdir
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers import AutoTokenizer as HuggingFaceTokenizer

from nemo_xtoken.errors import CheckpointError, ConfigError, UnavailableError
from nemo_xtoken.integrations.nemo.config import set_with_io
from nemo_xtoken.integrations.nemo.cpu_device import fused_rope_allowed, plain
from nemo_xtoken.integrations.nemo.model import CrossTokenizerDistillationModel
from nemo_xtoken.integrations.nemo.phi4 import Phi4MiniImporter
from nemo_xtoken.integrations.nemo.strategy import CpuMegatronStrategy

MODELS: dict[str, type[GPTModel]] = {
    "LlamaForCausalLM": llm.LlamaModel,
    "MistralForCausalLM": llm.MistralModel,
    "NemotronForCausalLM": llm.NemotronModel,
    "Qwen2ForCausalLM": llm.Qwen2Model,
    "Qwen3ForCausalLM": llm.Qwen3Model,
}
"""NeMo's models, whose connectors convert the weights, by the architecture that a Hugging Face config names."""

OWN_IMPORTERS = {"Phi3ForCausalLM": Phi4MiniImporter}
"""Connectors of ours, for teachers: nothing of these is exported."""

IN_CHECKPOINTS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
"""Names of weights in megatron-core's local layers, and in those of Transformer Engine and in all checkpoints."""

FOLDER = "distillation"


@io.model_importer(CrossTokenizerDistillationModel, "hf")
class HuggingFaceImporter(io.ModelConnector):
    """`llm.import_ckpt(CrossTokenizerDistillationModel(config), "hf://DIR_OR_NAME")`, for students and teachers alike.

    The config of the checkpoint is made from that of the Hugging Face model, see `config_of`.
    """

    @property
    def tokenizer(self) -> AutoTokenizer:
        """The model's own."""
        return AutoTokenizer(str(self))

    def init(self) -> CrossTokenizerDistillationModel:
        """The model type around the model's config."""
        return CrossTokenizerDistillationModel(config_of(str(self)), tokenizer=self.tokenizer)

    def apply(self, output_path: Path) -> Path:
        """Write the NeMo checkpoint. Raises UnavailableError for an architecture that NeMo has no conversion of."""
        source = AutoModelForCausalLM.from_pretrained(str(self), torch_dtype="auto")
        model = self.init()
        trainer = self.nemo_setup(model, _cpu_trainer())
        _take_weights(model.module, model.config, source, _connector(str(self)))
        self.nemo_save(output_path, trainer)
        teardown(trainer, model)
        return output_path


@io.model_exporter(CrossTokenizerDistillationModel, "hf")
class HuggingFaceExporter(io.ModelConnector):
    """`llm.export_ckpt(CHECKPOINT, "hf", OUT)`: the student as a Hugging Face model, without its teachers."""

    def apply(self, output_path: Path, source: str | None = None) -> Path:
        """Write model and tokenizer; `OUT/distillation` gets the run's context and the W that it built.

        source  the Hugging Face model whose config and tokenizer the student has; by default the one that
                `DistillationConfig.huggingface` names
        Raises CheckpointError where the checkpoint is of another model than the source.
        """
        context = ckpt_to_context_subdir(Path(str(self)))
        with fused_rope_allowed():
            model: CrossTokenizerDistillationModel = io.load_context(context, subpath="model")
        source = source or model.distillation.huggingface
        if source is None:
            raise ConfigError(
                "which Hugging Face model has the student's config and tokenizer? Name it: "
                'llm.export_ckpt(CHECKPOINT, "hf", OUT, source=DIR_OR_NAME)'
            )
        weights = stored_weights(Path(str(self)))
        exporter = _model_class(AutoConfig.from_pretrained(source)).exporter("hf", str(self))
        exporter.trust_remote_code = None
        target = _empty_model(source, weights)
        _convert(exporter, Weights(weights, model.config), target, f"checkpoint {self} and {source}")
        target.tie_weights()
        target.save_pretrained(output_path)
        HuggingFaceTokenizer.from_pretrained(source).save_pretrained(output_path)
        shutil.copytree(context, Path(output_path) / FOLDER, dirs_exist_ok=True)
        return Path(output_path)

    def nemo_load(self, *_: Any, **__: Any) -> Any:
        """Refused: `llm.export_ckpt` wants a whole model to ask ModelOpt for an export of its own, and takes a
        RuntimeError for a no; `apply` reads the weights without one."""
        raise RuntimeError("a distilled student has no ModelOpt export")


class Weights(nn.Module):
    """Tensors by their names, where NeMo's conversions expect a model of these names."""

    def __init__(self, tensors: Mapping[str, Tensor], config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        for name, tensor in tensors.items():
            *parents, last = name.split(".")
            module: nn.Module = self
            for parent in parents:
                if parent not in module._modules:
                    module.add_module(parent, nn.Module())
                module = module.get_submodule(parent)
            module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))


def config_of(source: str) -> GPTConfig:
    """NeMo's config of a Hugging Face model, without fused kernels where there is no GPU.

    Raises UnavailableError for an architecture that NeMo has no config of.
    """
    with fused_rope_allowed():
        config = _connector(source).config
    published = AutoConfig.from_pretrained(source)
    head_size = getattr(published, "head_dim", None)
    if head_size is not None:
        set_with_io(config, "kv_channels", head_size)  # NeMo's Qwen3 has 128, whatever the model says
    if config.vocab_size is None:
        set_with_io(config, "vocab_size", published.vocab_size)  # the tokenizer may have fewer ids than the head rows
    return config if torch.cuda.device_count() else plain(config)


def stored_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The model of a NeMo checkpoint on the CPU, whole, by the names of a model of one stage."""
    path = str(ckpt_to_weights_subdir(checkpoint, is_saving=False))
    try:
        tensors = dist_checkpointing.load_tensors_metadata(path)
    except Exception as error:
        raise CheckpointError(f"cannot read checkpoint {checkpoint}: {error}") from error
    wanted: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if name.startswith("module.")}
    with _process_group():
        loaded: Any = dist_checkpointing.load(wanted, path, validate_access_integrity=False)
    weights: dict[str, Tensor] = {}
    for name in wanted:  # what is loaded has the rest of the training's state as well
        weights |= _layer_by_layer(name.removeprefix("module."), loaded[name])
    return weights


@contextmanager
def _process_group() -> Iterator[None]:
    """Megatron's reader asks for its rank: a group of this process alone, where the caller has none."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _layer_by_layer(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Weights of layers that are all alike are one tensor in a checkpoint, [layers, ...]."""
    if not re.match(r"decoder\.layers\.\D", name):
        return {name: tensor}
    return {name.replace("layers.", f"layers.{i}.", 1): layer for i, layer in enumerate(tensor)}


def _take_weights(model: nn.Module, config: GPTConfig, source: nn.Module, connector: Any) -> None:
    """Convert the weights of a Hugging Face model into a Megatron model."""
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    names = {name: _name_in_checkpoints(name) for name in state}
    weights = Weights({names[name]: tensor for name, tensor in state.items()}, config)
    _convert(connector, source, weights, "the Hugging Face model and its config")
    converted = weights.state_dict()
    model.load_state_dict({name: converted[names[name]] for name in state}, strict=False)


def _name_in_checkpoints(name: str) -> str:
    for local, stored in IN_CHECKPOINTS.items():
        name = name.replace(local, stored)
    return name


def _convert(connector: Any, source: Any, target: Any, what: str) -> None:
    try:
        connector.convert_state(source, target)
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{what} do not belong together: {first_line}") from error


def _connector(source: str) -> Any:
    config = AutoConfig.from_pretrained(source)
    own = OWN_IMPORTERS.get(_architecture(config))
    if own is not None:
        return own(source)
    connector: Any = _model_class(config).importer(f"hf://{source}")
    connector.trust_remote_code = None  # some of NeMo's read it before they have set it
    return connector


def _model_class(config: PretrainedConfig) -> type[GPTModel]:
    architecture = _architecture(config)
    if architecture not in MODELS:
        raise UnavailableError(
            f"there is no conversion of {architecture} between Hugging Face and NeMo; expected one of "
            f"{', '.join(sorted(MODELS))}"
        )
    return MODELS[architecture]


def _architecture(config: PretrainedConfig) -> str:
    return (config.architectures or ["none"])[0]


def _empty_model(source: str, weights: Mapping[str, Tensor]) -> Any:
    dtype = weights["decoder.final_layernorm.weight"].dtype
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), torch_dtype=dtype)


def _cpu_trainer() -> nl.Trainer | None:
    """Where there is no GPU; NeMo has a trainer of its own for conversions elsewhere."""
    if torch.cuda.device_count():
        return None
    strategy = CpuMegatronStrategy(ckpt_save_optimizer=False, always_save_context=True, ckpt_async_save=False)
    return nl.Trainer(devices=1, accelerator="cpu", strategy=strategy, logger=False, enable_progress_bar=False)
