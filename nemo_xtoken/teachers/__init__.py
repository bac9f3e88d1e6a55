"""Where the hidden states of frozen teachers come from: the student's own ranks, other ranks, a cache on disk."""

from nemo_xtoken.teachers.protocol import LearntWeights, SampleRange, TeacherHead, TeacherSettings, TeacherSource
from nemo_xtoken.teachers.teacher import Teacher

__all__ = ["LearntWeights", "SampleRange", "Teacher", "TeacherHead", "TeacherSettings", "TeacherSource"]
