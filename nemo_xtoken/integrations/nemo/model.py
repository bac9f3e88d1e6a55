"""The model type: a NeMo GPT that is distilled from a teacher with another tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
from megatron.core import dist_checkpointing
from nemo.collections.llm.gpt.model.base import GPTConfig, GPTModel
from nemo.lightning import OptimizerModule
from nemo.lightning.io.pl import ckpt_to_weights_subdir
from torch import Tensor, nn

from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.megatron.context_parallel import model_inputs
from nemo_xtoken.integrations.megatron.head_tap import tap_head
from nemo_xtoken.integrations.megatron.initial_weights import initialise
from nemo_xtoken.integrations.megatron.inputs import check_unchanged
from nemo_xtoken.integrations.nemo.config import DistillationConfig, set_with_io
from nemo_xtoken.integrations.nemo.global_batch import GlobalBatch
from nemo_xtoken.integrations.nemo.layers import adapt_layers
from nemo_xtoken.integrations.nemo.loss import DistillationLossReduction
from nemo_xtoken.integrations.nemo.run import DistillationRun, start_run
from nemo_xtoken.integrations.nemo.whole_io import WholeIO
from nemo_xtoken.types import DistillBatch

STATE, PROJECTIONS = "nemo_xtoken", "projections"


class CrossTokenizerDistillationModel(WholeIO, GPTModel):
    """A student, any NeMo GPT config, with its teachers and balance; data comes from a `PreparedDataModule`.

    The student's forward hands out its final hidden states; the loss owns both heads. The teacher is no part of the
    module: neither optimizer nor checkpoint know of it. A checkpoint holds, besides what NeMo saves, the balance and
    each W that is trained.
    """

    def __init__(
        self,
        config: GPTConfig,
        distillation: DistillationConfig | None = None,
        optim: OptimizerModule | None = None,
        tokenizer: Any = None,
        model_transform: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        set_with_io(config, "calculate_per_token_loss", True)
        super().__init__(config, optim=optim, tokenizer=tokenizer, model_transform=model_transform)
        self.distillation = distillation or DistillationConfig()
        self._run: DistillationRun | None = None
        self._loss = DistillationLossReduction(self)

    @property
    def run(self) -> DistillationRun:
        """What the training needs on this rank; there from the start of `fit` or `validate` on."""
        if self._run is None:
            raise ConfigError("the distillation has not been started; call llm.train or trainer.fit")
        return self._run

    def configure_model(self, vp_stage: int | None = None) -> None:
        """Build the student, and let it hand out hidden states."""
        if hasattr(self, "module"):
            return
        adapt_layers(self.config)
        super().configure_model(vp_stage=vp_stage)
        if self.distillation.initial_weights_seed is not None:
            initialise(self.module, self.distillation.initial_weights_seed, self.tokenizer.vocab_size)
        tap_head(self.module)

    def configure_callbacks(self) -> list[pl.Callback]:
        """Lightning's way for a model to bring callbacks."""
        return [GlobalBatch()]

    def on_fit_start(self) -> None:
        """Build the teacher, once the student is in place."""
        self._run = self._run or start_run(self, self.trainer)

    def on_validation_start(self) -> None:
        """The same for `trainer.validate` alone."""
        self._run = self._run or start_run(self, self.trainer)

    def data_step(self, dataloader_iter: Iterator[Any]) -> DistillBatch:
        """The next micro batch, on this rank's device."""
        return micro_batch(next(dataloader_iter)).to(self.run.layout.device)

    def forward_step(self, batch: DistillBatch) -> Tensor:
        """[b, s/cp, h] final hidden states of the student on the last stage, what comes before on the others."""
        return self(*model_inputs(batch.student_tokens, batch.student_position_ids, self.run.layout.groups.cp))

    @property
    def training_loss_reduction(self) -> DistillationLossReduction:
        """The loss of a micro batch and of a step."""
        return self._loss

    @property
    def validation_loss_reduction(self) -> DistillationLossReduction:
        """The same: its scales say what counts."""
        return self._loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the balance, each W that is trained, and what the run was started with."""
        if self._run is not None:
            checkpoint[STATE] = {
                "balance": self._run.balance.state_dict(),
                "inputs": self._run.inputs,
                PROJECTIONS: self._run.learnt_state_dict(),
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the balance and the W of the step before; a checkpoint of a plain student has neither.

        Raises CheckpointError where the run was started with other data, W or teacher.
        """
        state = checkpoint.get(STATE)
        if state is None or self._run is None:
            return
        check_unchanged(state["inputs"], self._run.inputs, self.trainer.default_root_dir)
        self._run.balance.load_state_dict(state["balance"])
        if any(teacher.learn_projection for teacher in self.distillation.teachers):
            weights = str(ckpt_to_weights_subdir(self.trainer.ckpt_path, is_saving=False))
            loaded: Any = dist_checkpointing.load({STATE: {PROJECTIONS: self._run.learnt_state_dict()}}, weights)
            self._run.load_learnt_state_dict(loaded[STATE][PROJECTIONS])


def micro_batch(item: Any) -> DistillBatch:
    """What a NeMo data iterator yields, without the indices that Lightning adds."""
    return item[0] if isinstance(item, tuple) else item
