"""Two encodings of one text -> the chunks of tokens that cover the same bytes."""

from nemo_xtoken.alignment.align import align
from nemo_xtoken.alignment.dp import align_dp

__all__ = ["align", "align_dp"]
