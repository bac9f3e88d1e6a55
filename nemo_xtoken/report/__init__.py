"""HTML pages about a run, several runs, prepared data and a pair of tokenizers."""

from nemo_xtoken.report.pages import PageOptions, write_page_of
from nemo_xtoken.report.run_page import write_report

__all__ = ["PageOptions", "write_page_of", "write_report"]
