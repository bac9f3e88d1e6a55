from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from nemo_xtoken import tokenizers
from nemo_xtoken.errors import SpecError, TokenizerError
from nemo_xtoken.tokenizers import Tokenizer, hub, role_id, tiktoken_file
from nemo_xtoken.tokenizers.patterns import FAMILIES
from nemo_xtoken.tokenizers.tiktoken_file import _NEVER_SPECIAL, MAX_WHITESPACE_RUN
from tests import small_tokenizers as small

AWKWARD = [
    "",
    " ",
    "the cat 201 the 2012",
    "a\r\nb\tc\x00d",
    "👩‍👩‍👧 naïve café",
    "1" * 5000,
    "<|endoftext|> <s> </s> <|im_start|> <unk>",
    "def f():\n        return  1  \n\n",
    "한국어 中文 ไทย",
]

Make = Callable[[Path], str]

MAKERS: dict[str, Make] = {
    "bytes": lambda _: "bytes",
    **{name: lambda folder, name=name: f"{small.rank_file(folder)}?pattern={name}" for name in FAMILIES},
    "tekken": lambda folder: str(small.tekken_file(folder)),
    "byte_level_bpe": lambda folder: str(small.byte_level_bpe(folder)),
    "byte_level_bpe_nfc": lambda folder: str(small.byte_level_bpe(folder, normalizer=normalizers.NFC())),
    "byte_level_bpe_prefix": lambda folder: str(small.byte_level_bpe(folder, add_prefix_space=True)),
    "byte_level_bpe_without_bytes": lambda folder: str(small.byte_level_bpe(folder, missing=small.MISSING_CHARACTERS)),
    "spaced_bpe": lambda folder: str(small.spaced_bpe(folder)),
    "unigram": lambda folder: str(small.unigram(folder)),
    "wordpiece": lambda folder: str(small.wordpiece(folder)),
    "sentencepiece_bpe": lambda folder: str(small.sentencepiece_file(folder, **small.LIKE_LLAMA)),
    "sentencepiece_unigram": lambda folder: str(small.sentencepiece_file(folder, model_type="unigram", vocab_size=150)),
}
LOSSLESS = ("bytes", "gpt2", "cl100k", "o200k", "llama3", "tekken", "byte_level_bpe")


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """A tokenizer of each kind."""
    return {name: tokenizers.load(make(tmp_path_factory.mktemp(name))) for name, make in MAKERS.items()}


@pytest.fixture(params=MAKERS)
def tokenizer(request: pytest.FixtureRequest, loaded: dict[str, Tokenizer]) -> Tokenizer:
    return loaded[request.param]


def test_awkward_texts_are_tiled(tokenizer: Tokenizer) -> None:
    for text in AWKWARD:
        small.check_tiling(text, tokenizer.encode(text))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_text_is_tiled_by_every_tokenizer(loaded: dict[str, Tokenizer], data: st.DataObject) -> None:
    text = data.draw(st.text(max_size=30))
    for each in loaded.values():
        small.check_tiling(text, each.encode(text))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_tokens_of_lossless_tokenizers_cover_the_very_bytes_they_stand_for(
    loaded: dict[str, Tokenizer], data: st.DataObject
) -> None:
    text = data.draw(st.text(max_size=30) | st.text(alphabet="the 201é\r\n👩‍한", max_size=30))
    for name in LOSSLESS:
        encoding = loaded[name].encode(text)
        small.check_bytes(loaded[name], text, encoding)
        assert encoding.exact is None
        assert loaded[name].decode(encoding.ids) == text


def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    for encoding, text in zip(tokenizer.encode_batch(AWKWARD), AWKWARD, strict=True):
        alone = tokenizer.encode(text)
        for name in ("ids", "starts", "ends", "exact"):
            assert np.array_equal(getattr(encoding, name), getattr(alone, name))
    assert tokenizer.encode_batch([]) == []


def test_encodings_have_the_documented_types(tokenizer: Tokenizer) -> None:
    for text in AWKWARD:
        encoding = tokenizer.encode(text)
        assert (encoding.ids.dtype, encoding.starts.dtype, encoding.ends.dtype) == (np.int32, np.int64, np.int64)
        assert encoding.exact is None or encoding.exact.dtype == np.bool_


def test_names_of_special_tokens_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    text = " ".join(["<s></s>", "<|endoftext|>", "<|im_start|>", "<|begin_of_text|>", "[CLS]", *FAMILIES])
    specials = {token_id for token_id, role in tokenizer.special_roles.items() if role != "unk"}
    assert not specials & set(tokenizer.encode(text).ids.tolist())


def test_special_and_unknown_ids_have_no_bytes(tokenizer: Tokenizer) -> None:
    for token_id in (*tokenizer.special_roles, -1, tokenizer.vocab_size, tokenizer.vocab_size + 7):
        assert tokenizer.token_bytes(token_id) == b""
    assert max(tokenizer.special_roles) < tokenizer.vocab_size


def test_special_tokens_keep_their_names_beside_their_roles(tokenizer: Tokenizer) -> None:
    roles, names = tokenizer.special_roles, tokenizer.special_names
    assert names.keys() == roles.keys()
    assert [names[i] for i in roles if names[i] != roles[i]] == [
        names[i] for i in roles if roles[i] in ("bos", "eos", "pad", "unk")
    ]


def test_special_names_are_those_of_the_file(loaded: dict[str, Tokenizer]) -> None:
    for name, role, expected in (
        ("llama3", "bos", "<|begin_of_text|>"),
        ("tekken", "eos", "</s>"),
        ("wordpiece", "unk", "[UNK]"),
        ("sentencepiece_bpe", "bos", "<s>"),
        ("bytes", "pad", "<pad>"),
    ):
        token_id = role_id(loaded[name], role)
        assert token_id is not None
        assert loaded[name].special_names[token_id] == expected


def test_special_tokens_are_left_out_of_decoded_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the cat").ids
    assert tokenizer.decode([*ids, *tokenizer.special_roles]) == tokenizer.decode(ids)
    assert tokenizer.decode(ids).removeprefix(" ") == "the cat"


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text, text])):
        with pytest.raises(TokenizerError, match=r"lone surrogate U\+D83D at character 2"):
            encode("ab\ud83d")


@pytest.mark.parametrize("name", MAKERS)
def test_a_fingerprint_does_not_depend_on_the_folder(name: str, loaded: dict[str, Tokenizer], tmp_path: Path) -> None:
    source = loaded[name].spec
    if source == "bytes":
        copy = source
    else:
        file, _, query = source.partition("?")
        copy_file = tmp_path / f"renamed{Path(file).suffix}"
        copy_file.write_bytes(Path(file).read_bytes())
        copy = f"{copy_file}?{query}" if query else str(copy_file)
    assert tokenizers.load(copy).fingerprint == loaded[name].fingerprint


def test_fingerprints_tell_tokenizers_apart(loaded: dict[str, Tokenizer]) -> None:
    assert len({each.fingerprint for each in loaded.values()}) == len(loaded)


def test_a_fingerprint_depends_on_every_token(tmp_path: Path) -> None:
    first = tokenizers.load(f"{small.rank_file(tmp_path)}?pattern=gpt2")
    second = tokenizers.load(f"{small.rank_file(tmp_path, merges=[*small.MERGES[:-1], b'zz'])}?pattern=gpt2")
    assert first.vocab_size == second.vocab_size
    assert first.fingerprint != second.fingerprint


def test_a_forked_process_encodes_after_its_parent_did(loaded: dict[str, Tokenizer]) -> None:
    expected = {name: [e.ids.tolist() for e in each.encode_batch(AWKWARD)] for name, each in loaded.items()}
    child = os.fork()
    if child == 0:
        found = {name: [e.ids.tolist() for e in each.encode_batch(AWKWARD)] for name, each in loaded.items()}
        os._exit(0 if found == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_byte_tokens_have_the_ids_of_byt5() -> None:
    tokenizer = tokenizers.load("bytes")
    assert tokenizer.encode("aé").ids.tolist() == [100, 198, 172]
    assert (tokenizer.vocab_size, role_id(tokenizer, "eos"), role_id(tokenizer, "bos")) == (259, 1, None)
    assert tokenizer.decode([100, 198]) == "a\N{REPLACEMENT CHARACTER}"


def test_merges_of_a_rank_file_are_applied(loaded: dict[str, Tokenizer]) -> None:
    ids = loaded["cl100k"].encode(" the 201").ids.tolist()
    assert [loaded["cl100k"].token_bytes(token_id) for token_id in ids] == [b" the", b" ", b"201"]
    ids = loaded["qwen"].encode(" the 201").ids.tolist()
    assert [loaded["qwen"].token_bytes(token_id) for token_id in ids] == [b" the", b" ", b"2", b"0", b"1"]


def test_special_tokens_of_a_cut_rank_file_follow_its_highest_rank(loaded: dict[str, Tokenizer]) -> None:
    num_ranks = 256 + len(small.MERGES)
    assert loaded["cl100k"].special_roles == {
        num_ranks: "eos",
        num_ranks + 1: "<|fim_prefix|>",
        num_ranks + 2: "<|fim_middle|>",
        num_ranks + 3: "<|fim_suffix|>",
        num_ranks + 4: "<|endofprompt|>",
    }
    assert role_id(loaded["qwen"], "<|im_end|>") == num_ranks + 2
    assert (role_id(loaded["llama3"], "bos"), role_id(loaded["llama3"], "eos")) == (num_ranks, num_ranks + 1)


def test_every_family_has_the_published_number_of_special_tokens() -> None:
    assert {name: len(family.specials) for name, family in FAMILIES.items()} == {
        "gpt2": 1,
        "cl100k": 5,
        "o200k": 2,
        "qwen": 3,
        "llama3": 256,
    }
    assert FAMILIES["llama3"].specials["<|eot_id|>"] == 128009
    assert max(FAMILIES["llama3"].specials.values()) == 128255


def test_special_tokens_of_tekken_come_first_and_ranks_after_them(tmp_path: Path) -> None:
    tokenizer = tokenizers.load(str(small.tekken_file(tmp_path).parent))
    assert tokenizer.vocab_size == 20 + 256 + len(small.MERGES)
    assert [tokenizer.special_roles[i] for i in (0, 1, 2, 3, 11, 19)] == [
        "unk",
        "bos",
        "eos",
        "[INST]",
        "pad",
        "[TOOL_CONTENT]",
    ]
    ids = tokenizer.encode(" the 201").ids.tolist()
    assert [tokenizer.token_bytes(token_id) for token_id in ids] == [b" the", b" ", b"201"]
    assert ids[0] == 20 + 256 + small.MERGES.index(b" the")


def test_special_tokens_that_a_tekken_file_names_are_those_it_has(tmp_path: Path) -> None:
    named = [{"rank": 0, "token_str": "<s>", "is_control": True}, {"rank": 5, "token_str": "[THINK]"}]
    tokenizer = tokenizers.load(str(small.tekken_file(tmp_path, special_tokens=named)))
    assert [tokenizer.special_roles[i] for i in (0, 1, 5)] == ["bos", "<SPECIAL_1>", "[THINK]"]


def test_a_rank_file_is_known_by_what_it_holds(tmp_path: Path) -> None:
    path = small.rank_file(tmp_path, "tokenizer.model")
    spec = f"{tmp_path}?pattern=llama3"
    assert tokenizers.load(spec).fingerprint == tokenizers.load(f"{path}?pattern=llama3").fingerprint


def test_endless_white_space_is_refused_before_it_breaks_the_library(loaded: dict[str, Tokenizer]) -> None:
    text = "a" + " " * MAX_WHITESPACE_RUN + "b"
    with pytest.raises(TokenizerError, match="whitespace characters in a row"):
        loaded["gpt2"].encode(text)
    small.check_tiling(text[2:], loaded["gpt2"].encode(text[2:]))


def test_nothing_in_a_text_is_special_to_the_library(loaded: dict[str, Tokenizer]) -> None:
    text = f"the {_NEVER_SPECIAL}201{_NEVER_SPECIAL * 2}"
    library = tiktoken.Encoding(
        "plain",
        pat_str=FAMILIES["cl100k"].pattern,
        mergeable_ranks={loaded["cl100k"].token_bytes(rank): rank for rank in range(256 + len(small.MERGES))},
        special_tokens={},
    )
    for each in (text, text * 20, _NEVER_SPECIAL[:-1]):
        assert loaded["cl100k"].encode(each).ids.tolist() == library.encode_ordinary(each)


def test_ids_are_the_same_in_lists_and_in_arrays(loaded: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[list[int]]] = []
    for smallest in (0, 10**9):
        monkeypatch.setattr(tiktoken_file, "_WORTH_AN_ARRAY", smallest)
        found.append([each.ids.tolist() for each in loaded["qwen"].encode_batch(AWKWARD)])
    assert found[0] == found[1]


def test_ids_can_be_written_to(tokenizer: Tokenizer) -> None:
    for encoding in tokenizer.encode_batch(AWKWARD):
        assert encoding.ids.flags.writeable


def without_a_byte(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def with_a_bad_line(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"not base64!\n")


def with_a_rank_twice(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"enp6 5\n")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_byte, "256 bytes, 1 are missing"),
        (with_a_bad_line, f"line {257 + len(small.MERGES)}: expected a token in base64"),
        (with_a_rank_twice, "some share one"),
        (emptied, "256 are missing"),
    ],
)
def test_damaged_rank_files_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = small.rank_file(tmp_path)
    damage(path)
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizers.load(f"{path}?pattern=gpt2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "expected a tokenizer file"),
        ("{folder}/smal.tiktoken?pattern=qwen", r"no such file or directory; did you mean .*small\.tiktoken"),
        ("{folder}/small.tiktoken", "add \\?pattern=NAME with one of gpt2"),
        ("{folder}/small.tiktoken?pattern=qwn", "unknown pattern 'qwn': did you mean qwen"),
        ("{folder}/small.tiktoken?pattern=cl100k_base", "did you mean cl100k"),
        ("{folder}/small.tiktoken?pattern=", "unknown pattern ''"),
        ("{folder}/small.tiktoken?patern=qwen", "unknown option 'patern'"),
        ("bytes?pattern=qwen", "is for tiktoken rank files"),
        ("{folder}/other.json", "isn't a JSON object"),
        ("{folder}/no_model.json", "can't be read"),
        ("{folder}/tekken.json", "expected Mistral's tekken.json, got one that can't be read: no 'vocab'"),
        ("{folder}/bad_model.json", "can't be read"),
        ("{folder}/broken.json", "expected JSON"),
        ("{folder}/noise.model", "expected a SentencePiece model"),
        ("{folder}/empty.model", "expected a SentencePiece model"),
        ("{folder}/tokenizer.json?pattern=qwen", "is for tiktoken rank files"),
        ("{folder}/files", r"got empty\.model, noise\.model; name the file"),
        ("pkg:no-such-distribution/x.tiktoken?pattern=qwen", "no distribution 'no-such-distribution' is installed"),
        ("pkg:numpy/numpy/__init_.py", "did you mean pkg:numpy/numpy/__init__.py"),
        ("pkg:numpy", "has no such file"),
    ],
)
def test_wrong_specs_are_told_in_one_line(tmp_path: Path, spec: str, message: str) -> None:
    small.rank_file(tmp_path)
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "no_model.json").write_text('{"config": 1}')
    (tmp_path / "tekken.json").write_text(
        '{"config": {"default_vocab_size": 9, "default_num_special_tokens": 1, "pattern": ""}}'
    )
    (tmp_path / "bad_model.json").write_text('{"model": {"type": "Unheard"}}')
    (tmp_path / "broken.json").write_text('{"model"')
    (tmp_path / "noise.model").write_bytes(bytes(range(256)))
    (tmp_path / "empty.model").write_bytes(b"")
    (tmp_path / "files").mkdir()
    for name in ("empty.model", "noise.model"):
        (tmp_path / "files" / name).write_bytes(b"")
    if "tokenizer.json" in spec:
        small.byte_level_bpe(tmp_path)
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizers.load(spec.format(folder=tmp_path))
    assert "\n" not in str(caught.value)


class Offline:
    def model_info(self, name: str, timeout: float) -> None:
        raise ConnectionError("Name or service not known")


@pytest.mark.parametrize("spec", ["{file}", "{file}?pattern=qwn", "{file}.json", "bytes?pattern=qwen", "pkg:numpy/x"])
def test_a_wrong_spec_is_told_apart_from_a_wrong_file(tmp_path: Path, spec: str) -> None:
    path = small.rank_file(tmp_path)
    with pytest.raises(SpecError):
        tokenizers.load(spec.format(file=path))
    emptied(path)
    with pytest.raises(TokenizerError) as caught:
        tokenizers.load(f"{path}?pattern=gpt2")
    assert not isinstance(caught.value, SpecError)


def test_a_hub_name_without_a_hub_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, filename: None)
    monkeypatch.setattr(hub, "HfApi", Offline)
    with pytest.raises(TokenizerError, match=r"'owner/model' .* hub \(Name or service not known\); give the path"):
        tokenizers.load("owner/model")


def test_a_hub_name_is_read_from_the_cache_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cached = small.byte_level_bpe(tmp_path)
    monkeypatch.setattr(hub, "HfApi", Offline)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, filename: str(cached.with_name(filename)))
    tokenizer = tokenizers.load("owner/model")
    assert (tokenizer.spec, tokenizer.fingerprint) == ("owner/model", tokenizers.load(str(cached)).fingerprint)


def test_a_file_of_an_installed_distribution_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "toy" / "data").mkdir(parents=True)
    path = small.rank_file(tmp_path / "toy" / "data")
    (tmp_path / "toy-1.0.dist-info").mkdir()
    (tmp_path / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    tokenizer = tokenizers.load("pkg:toy/toy/data/small.tiktoken?pattern=qwen")
    assert tokenizer.fingerprint == tokenizers.load(f"{path}?pattern=qwen").fingerprint
