"""The projection matrix W: which teacher tokens a student token stands for. Built once per pair, kept as a file."""

from nemo_xtoken.projection.audit import Audit, ClassCoverage, EmptyRows, audit
from nemo_xtoken.projection.automatic import (
    KnownTokenizer,
    automatic_path,
    build_if_missing,
    newest_automatic,
)
from nemo_xtoken.projection.build import BuildOptions, build
from nemo_xtoken.projection.classes import CRITICAL_CLASSES, TokenClass, token_class
from nemo_xtoken.projection.empty_rows import EmptyReason, empty_rows
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.partition import common_set

__all__ = [
    "CRITICAL_CLASSES",
    "Audit",
    "BuildOptions",
    "ClassCoverage",
    "EmptyReason",
    "EmptyRows",
    "KnownTokenizer",
    "ProjectionMatrix",
    "TokenClass",
    "audit",
    "automatic_path",
    "build",
    "build_if_missing",
    "common_set",
    "empty_rows",
    "newest_automatic",
    "token_class",
]
