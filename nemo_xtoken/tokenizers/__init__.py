"""Any tokenizer behind one small protocol: ids with exact byte spans, bytes of each id, roles, a fingerprint."""

from nemo_xtoken.tokenizers.protocol import Tokenizer, role_id
from nemo_xtoken.tokenizers.spec import load

__all__ = ["Tokenizer", "load", "role_id"]
