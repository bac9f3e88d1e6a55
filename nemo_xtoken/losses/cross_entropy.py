"""Cross-entropy of the student on the tokens that really follow."""

from __future__ import annotations

from torch import Tensor

from nemo_xtoken.losses.merge import label_log_probability
from nemo_xtoken.losses.vocabulary import WholeVocabulary, log_softmax
from nemo_xtoken.types import DistillBatch, LossTerms, Sum


def cross_entropy_per_row(log_probs: Tensor, labels: Tensor, loss_mask: Tensor) -> Tensor:
    """Partial -log p(label) of each row, -> [rows]; a negative label has no local column and counts 0."""
    return -label_log_probability(log_probs, labels) * loss_mask.to(log_probs.dtype)


def cross_entropy(student_logits: Tensor, batch: DistillBatch, vocab_size: int | None = None) -> LossTerms:
    """Sum of -log p(label) over the rows that count, over their number: student_logits [b*s, V_S].

    vocab_size  number of real ids; columns from there on are padding and carry no probability
    """
    labels, mask = batch.student_labels.flatten(), batch.student_loss_mask.flatten()
    log_probs = log_softmax(student_logits[:, :vocab_size], WholeVocabulary())
    numerator = cross_entropy_per_row(log_probs, labels, mask).sum()
    denominator = mask.sum().to(numerator.dtype)
    return LossTerms(numerator, denominator, {"ce": Sum(numerator.detach(), denominator)})
