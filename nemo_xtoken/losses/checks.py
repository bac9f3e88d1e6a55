"""What is wrong with the logits that a loss was given, in words."""

from __future__ import annotations

from torch import Tensor

from nemo_xtoken.errors import ConfigError, LogitsError
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.types import DistillBatch


def check_shapes(student_logits: Tensor, teacher_logits: Tensor, batch: DistillBatch, matrix: ProjectionMatrix) -> None:
    """Raises LogitsError unless logits are [b*s, V_S] and [b*t, V_T], ConfigError where one is narrower than W."""
    for side, logits, labels, vocab_size, end in (
        ("student", student_logits, batch.student_labels, matrix.student_vocab_size, batch.chunks.student_end),
        ("teacher", teacher_logits, batch.teacher_labels, matrix.teacher_vocab_size, batch.chunks.teacher_end),
    ):
        if logits.dim() != 2 or not logits.is_floating_point() or len(logits) != labels.numel():
            raise LogitsError(
                f"expected {side} logits [{labels.numel()}, {vocab_size} or more] in a float dtype, one row per token "
                f"of the batch, got {list(logits.shape)} {logits.dtype}: flatten them batch first"
            )
        if logits.shape[1] < vocab_size:
            raise ConfigError(
                f"W was built for {vocab_size} {side} ids but the {side}'s logits have {logits.shape[1]} columns: "
                "use the projection of this pair, or raise the model's vocab_size"
            )
        if len(end) and int(end[-1]) > len(logits):
            raise LogitsError(
                f"the last chunk ends at {side} row {int(end[-1])} but there are {len(logits)} rows of logits: "
                "chunks and logits must be of one batch"
            )


def check_finite(result: Tensor, student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raises LogitsError where a result is not finite, naming the first row to blame; the logits are read only then.

    Logits without a part in the loss are not looked at, and a student's -inf is an error only where it makes the loss
    infinite: elsewhere it is a probability of 0.
    """
    if bool(result.isfinite()):
        return
    for side, logits in (("student", student_logits), ("teacher", teacher_logits)):
        wrong = ~logits.detach().isfinite()
        if bool(wrong.any()):
            row, column = (int(x) for x in wrong.nonzero()[0])
            raise LogitsError(
                f"expected finite logits, got {logits[row, column].item()} in row {row}, column {column} of the "
                f"{side}'s ({int(wrong.sum())} in all): look for a diverged or half-loaded {side}"
            )
    raise LogitsError(
        f"the loss of finite logits is {result.item()}: they are too large for {student_logits.dtype}, "
        f"at most {student_logits.detach().abs().max().item():.3g} and {teacher_logits.abs().max().item():.3g}"
    )
