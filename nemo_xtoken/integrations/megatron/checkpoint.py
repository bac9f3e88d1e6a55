"""Saves and resumes a whole training run through Megatron's dist_checkpointing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch.distributed.checkpoint.api import CheckpointException

from nemo_xtoken.errors import CheckpointError
from nemo_xtoken.integrations.megatron import checkpoint_files
from nemo_xtoken.integrations.megatron.balance import Balance
from nemo_xtoken.integrations.megatron.checkpoint_writing import CheckpointWriter
from nemo_xtoken.integrations.megatron.inputs import Inputs, check_unchanged
from nemo_xtoken.integrations.megatron.layout import Layout
from nemo_xtoken.integrations.megatron.learnt_projection import LearntProjection
from nemo_xtoken.integrations.megatron.model_checkpoint import METADATA, HeadIds, check_fits
from nemo_xtoken.integrations.megatron.optimizer_state import load_optimizer, make_room

OWNER = "this run"


@dataclass(frozen=True)
class Position:
    """How far a run has come: steps done, and samples taken from the data over all ranks."""

    step: int
    consumed_samples: int


class TrainingState:
    """Everything that a resumed run needs, besides its config: weights, optimizer, schedule, balance, random states and
    this rank's part of each W that is trained.

    The teacher is not part of it. With other `inputs` than it was started with a run does not go on.
    """

    def __init__(
        self,
        run_dir: Path,
        layout: Layout,
        models: Sequence[GPTModel],
        optimizer: MegatronOptimizer,
        schedule: OptimizerParamScheduler,
        balance: Balance,
        ids: HeadIds,
        inputs: Inputs,
        learnt_projections: Sequence[LearntProjection] = (),
        *,
        in_background: bool = False,
    ) -> None:
        self.run_dir, self.layout, self.models = run_dir, layout, models
        self.optimizer, self.schedule, self.balance = optimizer, schedule, balance
        self.ids, self.inputs, self.learnt_projections = ids, inputs, learnt_projections
        self.writer = CheckpointWriter(run_dir, in_background=in_background)

    def save(self, position: Position, keep: int) -> None:
        """Write a checkpoint; once it is complete, delete all but the newest `keep`. Every rank must call it.

        In the background (`train.async_save`) that is once `writer.poll` or `writer.finish` has seen it.
        """

        def projections(directory: Path) -> None:
            for projection in self.learnt_projections:
                projection.save(directory)

        state = {**self._sharded(loading=False), **self._common(position)}
        self.writer.write(state, position.step, keep, projections)

    def resume(self) -> Position | None:
        """Go on from the latest complete checkpoint; None where there is none. Every rank must call it.

        Raises CheckpointError where it can't be read, or is of another model or other inputs.
        """
        checkpoint = self._agree_on_latest()
        if checkpoint is None:
            return None
        make_room(self.optimizer)
        wanted = self._sharded(loading=True)
        for model in wanted["model"].values():
            check_fits(model, checkpoint, OWNER, self.ids)
        common = dist_checkpointing.load_common_state_dict(str(checkpoint))
        check_unchanged(common["inputs"], self.inputs, self.run_dir)
        if common["layout"] != self._layout():
            del wanted["random"]  # there is one per rank, and without dropout nothing draws from it
        try:
            loaded: Any = dist_checkpointing.load(wanted, str(checkpoint))
        except (Exception, CheckpointException) as error:
            raise CheckpointError(
                f"checkpoint {checkpoint} can't be loaded ({error}); delete it to go on from the one before"
            ) from error
        self._apply(loaded)
        return Position(loaded["step"], loaded["consumed_samples"])

    def _sharded(self, loading: bool) -> dict[str, Any]:
        model = {str(i): part.sharded_state_dict(metadata=dict(METADATA)) for i, part in enumerate(self.models)}
        optimizer = self.optimizer.sharded_state_dict(model, is_loading=loading, metadata=dict(METADATA))
        learnt = {projection.name: projection.sharded_state_dict() for projection in self.learnt_projections}
        return {"model": model, "optimizer": optimizer, "projections": learnt, "random": self._random_states()}

    def _common(self, position: Position) -> dict[str, Any]:
        return {
            "schedule": self.schedule.state_dict(),
            "balance": self.balance.state_dict(),
            "step": position.step,
            "consumed_samples": position.consumed_samples,
            "head_ids": list(self.ids),
            "layout": self._layout(),
            "inputs": self.inputs,
        }

    def _layout(self) -> list[int]:
        groups = self.layout.groups
        return [groups.tp.size(), groups.pp.size(), groups.dp_cp.size()]

    def _random_states(self) -> ShardedObject:
        groups = self.layout.groups
        states: dict[str, Any] = {"torch": torch.get_rng_state()}
        if self.layout.device.type == "cuda":
            tracker: Any = tensor_parallel.get_cuda_rng_tracker()
            states |= {"cuda": torch.cuda.get_rng_state(), "tracker": tracker.get_states()}
        return ShardedObject(
            "random_states",
            states,
            global_shape=(groups.pp.size(), groups.tp.size(), groups.dp_cp.size()),
            global_offset=(groups.pp.rank(), groups.tp.rank(), groups.dp_cp.rank()),
            replica_id=0,
        )

    def _apply(self, loaded: dict[str, Any]) -> None:
        for i, model in enumerate(self.models):
            model.load_state_dict(loaded["model"][str(i)])
        load_optimizer(self.optimizer, loaded["optimizer"])
        for projection in self.learnt_projections:
            projection.load_state_dict(loaded["projections"][projection.name])
        self.schedule.load_state_dict(loaded["schedule"])
        self.balance.load_state_dict(loaded["balance"])
        if "random" in loaded:
            torch.set_rng_state(loaded["random"]["torch"])
            if self.layout.device.type == "cuda":
                tracker: Any = tensor_parallel.get_cuda_rng_tracker()
                torch.cuda.set_rng_state(loaded["random"]["cuda"])
                tracker.set_states(loaded["random"]["tracker"])

    def _agree_on_latest(self) -> Path | None:
        """The latest complete checkpoint whose files are what was written: every rank reads its part of them."""
        damaged: set[Path] = set()
        while True:
            found = [None if self.layout.rank else checkpoint_files.latest_complete(self.run_dir, passing_over=damaged)]
            dist.broadcast_object_list(found, src=0)
            latest = found[0]
            if latest is None or self._is_sound(latest):
                return latest
            damaged.add(latest)

    def _is_sound(self, checkpoint: Path) -> bool:
        sums = checkpoint_files.read_sums(checkpoint)
        own = dict(sorted(sums.items())[self.layout.rank :: dist.get_world_size()])
        wrong = [None] * dist.get_world_size()
        dist.all_gather_object(wrong, checkpoint_files.what_differs(checkpoint, own))
        found = [text for text in wrong if text is not None]
        if found and self.layout.rank == 0:
            sys.stderr.write(f"warning: checkpoint {checkpoint} is passed over: {found[0]}\n")
        return not found
