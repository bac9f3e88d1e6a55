"""What a teacher reads of prepared data: its pieces, and what tells them apart from other ones."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import numpy as np

from nemo_xtoken.config import RunConfig, TeacherConfig
from nemo_xtoken.data.dataset import sample_builder
from nemo_xtoken.data.prepared import PreparedData
from nemo_xtoken.data.run_data import teacher_lengths, teacher_numbers
from nemo_xtoken.data.sample import SampleBuilder
from nemo_xtoken.integrations.megatron.inputs import data_key


def data_of(config: RunConfig, teacher: TeacherConfig, path: str) -> tuple[SampleBuilder, int]:
    """The pieces of the data at `path`, for one teacher, and the teacher's number there."""
    prepared = PreparedData.open(path)
    (number,) = teacher_numbers([teacher], prepared.manifest, path)
    data, lengths = config.data, teacher_lengths(config.data, prepared.manifest)
    return sample_builder(prepared, data.student_sequence_length, lengths, data.exact_chunks_only, [number]), number


def precision_key(teacher: TeacherConfig) -> str:
    """What tells teachers in FP8 apart: other rounding, other hidden states. "" without FP8."""
    return "" if teacher.fp8 is None else json.dumps(asdict(teacher.fp8), sort_keys=True)


def data_fingerprint(builder: SampleBuilder, number: int) -> str:
    """Of the prepared tokens, and of where one teacher's are cut: a token's hidden state is of its piece."""
    pieces = builder.pieces
    digest = hashlib.sha256(data_key([builder.prepared.manifest]).encode())
    for array in (pieces.document, pieces.teacher_start[number], pieces.teacher_end[number]):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"{number}-{digest.hexdigest()}"
