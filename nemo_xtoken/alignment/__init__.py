"""Two encodings of one text -> the chunks of tokens that cover the same bytes."""

from nemo_xtoken.alignment.align import align

__all__ = ["align"]
