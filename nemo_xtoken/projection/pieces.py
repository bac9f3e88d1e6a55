"""What a tokenizer makes of a piece of text, or of bytes that are no text by themselves, in the middle of a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_xtoken.tokenizers.protocol import Tokenizer
from nemo_xtoken.types import Encoding

LINE_BREAK = "\n"
Pieces = NDArray[np.int32]


def token_pieces(tokenizer: Tokenizer, vocabulary: Mapping[bytes, int], tokens: Sequence[bytes]) -> list[Pieces]:
    """What a tokenizer makes of each byte string, [pieces] int32; none where part of it is unknown to the tokenizer.

    Text becomes its own encoding. Bytes that are no text alone are cut into the longest tokens of its `vocabulary`.
    """
    texts = [decode_strictly(token) for token in tokens]
    encoded = iter(text_pieces(tokenizer, [text for text in texts if text is not None]))
    pieces = [
        byte_pieces(vocabulary, token) if text is None else next(encoded)
        for token, text in zip(tokens, texts, strict=True)
    ]
    return _without_unknown(pieces, list(tokenizer.special_roles))


def text_pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Pieces]:
    """The ids that each text is encoded as, [pieces] int32, all in one batch.

    SentencePiece puts a space before a text. That belongs to the start of a text and not to the piece, so the piece is
    encoded after a line break there.
    """
    if not _adds_space(tokenizer):
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    encodings = tokenizer.encode_batch([LINE_BREAK + text for text in texts])
    return [_after_line_break(tokenizer, text, encoding) for text, encoding in zip(texts, encodings, strict=True)]


def byte_pieces(vocabulary: Mapping[bytes, int], token: bytes) -> Pieces:
    """The longest known token at each place, from the left, [pieces] int32; none at all where a place has no token."""
    ids: list[int] = []
    start = 0
    while start < len(token):
        end = next((end for end in range(len(token), start, -1) if token[start:end] in vocabulary), None)
        if end is None:
            return np.zeros(0, np.int32)
        ids.append(vocabulary[token[start:end]])
        start = end
    return np.array(ids, np.int32)


def byte_vocabulary(tokenizer: Tokenizer) -> dict[bytes, int]:
    """The id of each byte string that is a token.

    Where several ids have the same bytes (a letter, and its byte of SentencePiece's fallback), it is the one that the
    tokenizer itself gives the text, otherwise the lowest.
    """
    vocabulary: dict[bytes, int] = {}
    doubles: dict[bytes, list[int]] = {}
    for token_id in range(tokenizer.vocab_size):
        token = tokenizer.token_bytes(token_id)
        if token and vocabulary.setdefault(token, token_id) != token_id:
            doubles.setdefault(token, [vocabulary[token]]).append(token_id)
    return vocabulary | _preferred(tokenizer, doubles)


def decode_strictly(token: bytes) -> str | None:
    """The token as text, None where it is not valid UTF-8 by itself."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def _without_unknown(pieces: list[Pieces], special_ids: list[int]) -> list[Pieces]:
    """The pieces, none where one of them is a special id: that is the token for the unknown, which says nothing."""
    lengths = [len(ids) for ids in pieces]
    is_special = np.isin(np.concatenate([*pieces, np.zeros(0, np.int32)]), special_ids)
    for row in set(np.repeat(np.arange(len(pieces)), lengths)[is_special].tolist()):
        pieces[row] = np.zeros(0, np.int32)
    return pieces


def _preferred(tokenizer: Tokenizer, doubles: Mapping[bytes, Sequence[int]]) -> dict[bytes, int]:
    texts = {token: text for token in doubles if (text := decode_strictly(token)) is not None}
    pieces = text_pieces(tokenizer, list(texts.values())) if texts else []
    singles = {token: int(ids[0]) for token, ids in zip(texts, pieces, strict=True) if len(ids) == 1}
    return {token: token_id for token, token_id in singles.items() if token_id in doubles[token]}


def _adds_space(tokenizer: Tokenizer) -> bool:
    return b"".join(tokenizer.token_bytes(int(token_id)) for token_id in tokenizer.encode("a").ids).startswith(b" ")


def _after_line_break(tokenizer: Tokenizer, text: str, encoding: Encoding) -> Pieces:
    if (encoding.ends == len(LINE_BREAK)).any():
        return encoding.ids[encoding.starts >= len(LINE_BREAK)]
    # the line break has merged with the text, so the piece stands alone only at the start of one, after the space
    alone = tokenizer.encode(text)
    return alone.ids[alone.ends > 0]
