"""Cross-tokenizer distillation as a NeMo 2.x model type, for `llm.train`."""

from megatron.core.distributed import DistributedDataParallelConfig
from nemo.lightning import io

from nemo_xtoken.integrations.nemo.callbacks import DistillationProgress, ProjectionSnapshots
from nemo_xtoken.integrations.nemo.config import DistillationConfig, NemoTeacher
from nemo_xtoken.integrations.nemo.data import PreparedDataModule
from nemo_xtoken.integrations.nemo.extend import distill_recipe
from nemo_xtoken.integrations.nemo.huggingface import config_of
from nemo_xtoken.integrations.nemo.model import CrossTokenizerDistillationModel

io.track_io(DistributedDataParallelConfig)  # else the context of a checkpoint can't be written where a recipe has one

__all__ = [
    "CrossTokenizerDistillationModel",
    "DistillationConfig",
    "DistillationProgress",
    "NemoTeacher",
    "PreparedDataModule",
    "ProjectionSnapshots",
    "config_of",
    "distill_recipe",
]
