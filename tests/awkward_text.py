"""Texts on which tokenizers and aligners break."""

from __future__ import annotations

import unicodedata

from hypothesis import strategies as st

TEXTS = (
    "",
    " ",
    "\n",
    "  \r\n\t ",
    "In 2024 it was 3.75, 201 more than 1288.",
    "naïve café, ﬁne ½ ① ＡＢＣ … Å Å",
    unicodedata.normalize("NFD", "naïve café Å 각 가 ভো"),
    "e\u0323\u0302 e\u0302\u0323 \u0344 \u0f73 \u1100\u1161\u11a8",
    "中文句子。한국어 문장, ไทยภาษา हिन्दी አማርኛ العربية עברית ქართული",
    "👩‍👩‍👧 🏳️‍🌈 🇨🇿 👍🏽 🫠",
    "def f(x):\r\n\treturn {'a':  x,\n        'b': 1}\n\n\n",
    "a" + " " * 37 + "b" + "\t" * 5 + "\n" * 4,
    "<|endoftext|><|im_start|>user <s>[INST] </s> <unk> <pad> <bos> <eos> [CLS]",
    "▁a ▁▁ Ġb ĊĠ <0x0A> <0xE4> ##ing ▁",
    "\x00a\x01\x1b\x7f\x80\u200b\ufeff\u2028\u00ad\u00a0x",
    "1" * 1000 + "." + "9876543210" * 50,
    "ab" * 400 + " aba" * 100,
    "I'LL she'd THEY'RE it's 'tis",
    "\U0010ffff\U000e0001\u3000\uffff",
    "ﷺ ﷽ ㍿ ℌ ǆ ß ſ İ ı",
    "x\x04= [\x06\x13] \U0004f000\U000bf000 a\x14\x16\x1d",
    "the</s>cat<pad> [UNK] fac\u0327ade cafe\u0301 the q\u0301 ﬁ\u0301 か\u3099 ﾊ\uff9f",
)

_FRAGMENTS = (
    *("the", " cat", " 201", "1234567", "3.14", " ", "  ", "\n", "\r\n", "\t", "é", "e\u0301", "\u0301", "Å", "\u212b"),
    *("中", "文句", "한", "\u1112\u1161\u11ab", "ไทย", "हि", "አ", "ע", "🙂", "👩‍👧", "\ufe0f", "\u200d", "🇨", "🇿"),
    *("<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<unk>", "[INST]", "▁", "Ġ", "<0x0A>", "##", "\x00", "\x7f"),
    *("\x04", "\x06=", "[\x13\x14", "\x16\x1d ", "\U0004f000", "<pad>", "[UNK]", "fac\u0327ade", "cafe\u0301 the"),
    *("ﬁ", "½", "…", "＃", "\u00a0", "\u3000", "\u200b", "\ufeff", "'ll", "'S", "_", "://", "aaaa", "0" * 40),
)

texts = st.lists(st.sampled_from(_FRAGMENTS) | st.characters(exclude_categories=["Cs"]), max_size=12).map("".join)
"""Generated texts out of awkward pieces and any characters."""
