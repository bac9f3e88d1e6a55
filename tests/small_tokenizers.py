"""Small tokenizers of every format, made in the test that needs them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nemo_xtoken import tokenizers
from nemo_xtoken.tokenizers.patterns import find_family
from nemo_xtoken.types import Encoding

SENTENCES = [
    "The library has 201 books and 7 of them cost 1,250 crowns.",
    "the cat sat on the other mat, the hat on the cat",
    "Das Café in München öffnet um 8:30 Uhr; naïve façade.",
    "def add(first, second):\n    return first + second\n",
    "한국어 문장과 中文句子 und ein Rest.",
] * 20

MERGES = [b"th", b"the", b" t", b" the", b"an", b"and", b"20", b"201", b"  ", b"\r\n", b"\xc3\xa9", b"f\xc3\xa9"]


def rank_lines(tokens: Sequence[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def rank_file(folder: Path, name: str = "small.tiktoken", merges: Sequence[bytes] = MERGES) -> Path:
    """A rank file of the 256 bytes and a few merges."""
    path = folder / name
    path.write_bytes(rank_lines([bytes([value]) for value in range(256)] + list(merges)))
    return path


def tekken_file(folder: Path, **changes: Any) -> Path:
    """A `tekken.json` of the 256 bytes and a few merges, and one token more than it uses."""
    tokens = [bytes([value]) for value in range(256)] + MERGES
    config = {
        "pattern": find_family("gpt2").pattern,
        "num_vocab_tokens": len(tokens) + 1,
        "default_vocab_size": 20 + len(tokens),
        "default_num_special_tokens": 20,
        "version": "v3",
    }
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate([*tokens, b"not used"])
    ]
    path = folder / "tekken.json"
    path.write_text(json.dumps({"config": config, "vocab": vocab} | changes))
    return path


def sentencepiece_file(folder: Path, *, sentences: Sequence[str] = SENTENCES, **options: Any) -> Path:
    """A SentencePiece model."""
    model = io.BytesIO()
    settings = {
        "vocab_size": 400,
        "model_type": "bpe",
        "character_coverage": 0.98,
        "minloglevel": 2,
        "hard_vocab_limit": False,
    } | options
    SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=model, **settings)
    path = folder / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


LIKE_LLAMA = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}
"""Options of `sentencepiece_file`: nothing of the text is changed, a space goes in front, characters fall to bytes."""


MISSING = b"\x04\x06\x13\x14\x16\x1d\xf1\xf2"
"""Bytes for which SmolLM2 has no token."""

MISSING_CHARACTERS = "\u0104\u0106\u0113\u0114\u0116\u011d\u00f1\u00f2"
"""The same in GPT-2's alphabet."""


def byte_level_bpe(
    folder: Path,
    *,
    normalizer: normalizers.Normalizer | None = None,
    add_prefix_space: bool = False,
    missing: str = "",
) -> Path:
    """A `tokenizer.json` like GPT-2's, with a template of special tokens, truncation and padding, all to be ignored.

    missing: characters of GPT-2's alphabet for whose bytes there is no token
    """
    library = Tokenizer(models.BPE())
    if normalizer is not None:
        library.normalizer = normalizer
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|im_start|>"],
        initial_alphabet=[char for char in pre_tokenizers.ByteLevel.alphabet() if char not in missing],
        show_progress=False,
    )
    library.train_from_iterator(SENTENCES, trainer)
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    library.enable_truncation(4)
    library.enable_padding()
    return _save(library, folder)


def wordpiece(folder: Path, *, sentences: Sequence[str] = SENTENCES, vocab_size: int = 200) -> Path:
    """A `tokenizer.json` like BERT's: lower case, no accents, no spaces."""
    library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    special_tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special_tokens, show_progress=False)
    library.train_from_iterator(sentences, trainer)
    return _save(library, folder)


def spaced_bpe(folder: Path) -> Path:
    """A `tokenizer.json` like Llama 2's: U+2581 for spaces and in front, byte fallback."""
    library = Tokenizer(models.BPE())
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    trained = library.get_vocab()
    description = json.loads(library.to_str())
    first = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    ordered = first + sorted(trained, key=lambda piece: trained[piece])
    description["model"] |= {
        "vocab": {piece: token_id for token_id, piece in enumerate(ordered)},
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
    }
    library = Tokenizer.from_str(json.dumps(description))
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _save(library, folder)


def unigram(folder: Path, *, special_tokens: Sequence[str] = ("<unk>",)) -> Path:
    """A `tokenizer.json` like T5's: NFKC, runs of spaces made one, a space in front."""
    library = Tokenizer(models.Unigram())
    library.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=list(special_tokens), unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(SENTENCES, trainer)
    return _save(library, folder)


def split_unigram(folder: Path, *, sentences: Sequence[str] = SENTENCES, vocab_size: int = 150) -> Path:
    """A `tokenizer.json` like XLM-R's: NFKC, words of what is no white space, a space in front of each."""
    library = Tokenizer(models.Unigram())
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(sentences, trainer)
    return _save(library, folder)


def unknown_bpe(folder: Path, *, fuse_unk: bool) -> Path:
    """A `tokenizer.json` without bytes: a character that is in no piece is unknown, or a run of them."""
    library = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse_unk))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>"], show_progress=False)
    library.train_from_iterator(SENTENCES, trainer)
    return _save(library, folder)


def _save(library: Tokenizer, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    library.save(str(path))
    return path


def check_tiling(text: str, encoding: Encoding) -> None:
    """Text tokens tile the bytes of the text."""
    size = len(text.encode())
    assert len(encoding.ids) == len(encoding.starts) == len(encoding.ends)
    assert encoding.roles is None
    if len(encoding):
        assert encoding.starts[0] == 0
        assert encoding.ends[-1] == size
        assert (encoding.starts[1:] == encoding.ends[:-1]).all()
        assert (encoding.ends >= encoding.starts).all()


def check_bytes(tokenizer: tokenizers.Tokenizer, text: str, encoding: Encoding, prefix: bytes = b"") -> None:
    """Every token covers the very bytes it stands for; the first one may begin with bytes that the text lacks."""
    check_tiling(text, encoding)
    data = text.encode()
    for place, (token_id, start, end) in enumerate(zip(encoding.ids, encoding.starts, encoding.ends, strict=True)):
        piece = tokenizer.token_bytes(int(token_id))
        assert piece == data[start:end] or (place == 0 and piece == prefix + data[start:end])


def groups(tokenizer: tokenizers.Tokenizer, text: str, encoding: Encoding) -> list[tuple[bytes, bytes]]:
    """What the tokenizer made of the text: (bytes of the text, bytes of the tokens that stand for them)."""
    data = text.encode()
    found: list[tuple[bytes, bytes]] = []
    joined = b""
    for token_id, start, end in zip(encoding.ids, encoding.starts, encoding.ends, strict=True):
        joined += tokenizer.token_bytes(int(token_id))
        if end > start:
            found.append((data[start:end], joined))
            joined = b""
    assert not joined
    return found
