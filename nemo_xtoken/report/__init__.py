"""The HTML report of a run: its losses, its held-out numbers, and how its two tokenizers meet."""

from nemo_xtoken.report.page import write_report

__all__ = ["write_report"]
