"""The projection matrix W: which teacher tokens a student token stands for. Built once per pair, kept as a file."""

from nemo_xtoken.projection.audit import Audit, ClassCoverage, audit
from nemo_xtoken.projection.build import build
from nemo_xtoken.projection.classes import CRITICAL_CLASSES, TokenClass, token_class
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.partition import common_set

__all__ = [
    "CRITICAL_CLASSES",
    "Audit",
    "ClassCoverage",
    "ProjectionMatrix",
    "TokenClass",
    "audit",
    "build",
    "common_set",
    "token_class",
]
