"""Prepared data for NeMo: both token streams and their chunks, in the order of NeMo's own batch samplers."""

from typing import Any, Optional

import lightning.pytorch as pl
from megatron.core.num_microbatches_calculator import get_num_microbatches
from nemo.lightning import io
from nemo.lightning.data import WrappedDataLoader
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from torch.utils.data import Dataset

from nemo_xtoken.config import BlendPart, DataConfig, TeacherLength
from nemo_xtoken.data.batches import Samples
from nemo_xtoken.data.blend import BlendedDataset
from nemo_xtoken.data.collate import collate
from nemo_xtoken.data.manifest import Manifest, Side
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.run_data import check_lengths, check_same_tokenizers, packed_dataset
from nemo_xtoken.data.sample import Sample
from nemo_xtoken.errors import ConfigError
from nemo_xtoken.integrations.nemo.config import NemoTeacher
from nemo_xtoken.integrations.nemo.whole_io import WholeIO


class Prefix(Dataset[Sample]):
    """The first `length` samples of an endless stream, as torch's loaders want them."""

    def __init__(self, stream: Samples, length: int) -> None:
        self._stream, self._length = stream, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> Sample:
        return self._stream.sample(i)


class StudentTokenizer(WholeIO):
    """What NeMo asks of the student's tokenizer, from the prepared data: sizes and ids. It encodes nothing."""

    def __init__(self, vocab_size: int, bos_id: Optional[int] = None, eos_id: int | None = None) -> None:
        self.vocab_size, self.bos_id, self.eos_id = vocab_size, bos_id, eos_id

    @classmethod
    def of(cls, side: Side) -> "StudentTokenizer":
        """That of one side of prepared data."""
        return cls(side.vocab_size, side.bos_id, side.eos_id)


class PreparedDataModule(pl.LightningDataModule, io.IOMixin):
    """Data of `nemo-xtoken data prepare`, for `CrossTokenizerDistillationModel`.

    path, blend         one directory of prepared data, or several as [path, weight], mixed by weight
    seq_length          tokens of a student sequence; the model's config.seq_length
    teacher_seq_length  tokens of a teacher sequence of the same text
    teacher_lengths     other lengths, by the names of the teachers in the data
    validation_batches  global batches of each validation
    num_workers         processes that load samples; 0 loads in the training process

    Sample i of the stream follows from the data, the seed and i alone, so the position in a checkpoint, a number of
    samples, is the whole state: a run goes on with the same data under any layout.
    """

    def __init__(
        self,
        path: str = "",
        *,
        seq_length: int,
        teacher_seq_length: int,
        micro_batch_size: int,
        global_batch_size: int,
        teacher_lengths: Optional[dict[str, int]] = None,
        blend: Optional[list[list[Any]]] = None,
        validation_path: Optional[str] = None,
        validation_batches: int = 8,
        seed: int = 1234,
        exact_chunks_only: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.micro_batch_size, self.global_batch_size, self.seq_length = micro_batch_size, global_batch_size, seq_length
        self.validation_batches, self.num_workers = validation_batches, num_workers
        self.teacher_seq_length, self.teacher_lengths = teacher_seq_length, teacher_lengths
        self.config = DataConfig(
            path=path,
            student_sequence_length=seq_length,
            teacher_sequence_length=teacher_seq_length,
            teacher_lengths=tuple(
                TeacherLength(teacher=name, sequence_length=length) for name, length in (teacher_lengths or {}).items()
            ),
            blend=tuple(BlendPart(path=part, weight=weight) for part, weight in blend or ()),
            validation_path=validation_path,
            seed=seed,
            exact_chunks_only=exact_chunks_only,
        )
        self.data_sampler = MegatronDataSampler(
            seq_len=seq_length, micro_batch_size=micro_batch_size, global_batch_size=global_batch_size
        )
        self._position_at_start = 0

    @property
    def manifests(self) -> list[Manifest]:
        """What the parts of the training data hold."""
        return [PreparedData.open(part.path).manifest for part in self.config.parts]

    @property
    def tokenizer(self) -> StudentTokenizer:
        """The student's, as the data was prepared with it."""
        return StudentTokenizer.of(self.manifests[0].student)

    def setup(self, stage: str = "") -> None:
        """Raises DataError where parts of the data, or the validation data, are of different tokenizers."""
        first, *others = [part.path for part in self.config.parts]
        others += [] if self.config.validation_path is None else [self.config.validation_path]
        trained_on = PreparedData.open(first).manifest
        for path in others:
            check_same_tokenizers(self._teachers, path, PreparedData.open(path).manifest, first, trained_on)
        check_lengths(self.config, self.manifests)

    def train_dataloader(self) -> WrappedDataLoader:
        """As many samples as `max_steps` takes. NeMo puts its batch sampler in, from the position of the checkpoint."""
        steps = self._trainer.max_steps
        if steps <= 0:
            raise ConfigError(f"expected a number of steps in trainer.max_steps, got {steps}")
        return self._loader("train", self.config.parts, steps)

    def val_dataloader(self) -> WrappedDataLoader | list[Any]:
        """The first `validation_batches` global batches of the validation data, the same every time."""
        if self.config.validation_path is None:
            return []
        return self._loader("validation", (BlendPart(path=self.config.validation_path),), self.validation_batches)

    def state_dict(self) -> dict[str, Any]:
        """How many samples have been taken from the data, over all ranks."""
        steps = self._trainer.global_step - self._first_step
        return {"consumed_samples": self._position_at_start + steps * self.global_batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint's run was."""
        self._position_at_start = state_dict["consumed_samples"]
        self.data_sampler.init_consumed_samples = self.data_sampler.prev_consumed_samples = self._position_at_start
        self.data_sampler.if_first_step = 1

    def reconfigure_limit_batches(self) -> None:
        """Called by NeMo's strategy: Lightning counts micro batches, and a validation has this many."""
        trainer = self._trainer
        if trainer.limit_val_batches:
            trainer.limit_val_batches = self.validation_batches * get_num_microbatches()

    @property
    def _trainer(self) -> Any:
        if self.trainer is None:
            raise ConfigError("this data module has no trainer yet; give it to llm.train or to trainer.fit")
        return self.trainer

    @property
    def _teachers(self) -> list[NemoTeacher]:
        return self._trainer.lightning_module.distillation.teachers

    @property
    def _first_step(self) -> int:
        return self._position_at_start // self.global_batch_size

    def _loader(self, mode: Any, parts: tuple[BlendPart, ...], global_batches: int) -> WrappedDataLoader:
        return WrappedDataLoader(
            mode=mode,
            dataset=Prefix(self._stream(parts), global_batches * self.global_batch_size),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate,
        )

    def _stream(self, parts: tuple[BlendPart, ...]) -> BlendedDataset:
        datasets = [packed_dataset(self.config, self._teachers, part.path) for part in parts]
        return BlendedDataset(datasets, [part.weight for part in parts])
