"""The text of a special token is plain text, whatever the model and wherever the marker is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from nemo_xtoken import tokenizers
from nemo_xtoken.tokenizers import Tokenizer, role_id
from tests import small_tokenizers as small

SPECIALS = ("<pad>", "</s>", "<|end|>")


def _unigram(folder: Path) -> Path:
    return small.unigram(folder, special_tokens=["<unk>", *SPECIALS])


def _words(folder: Path, model: models.Model, special: bool = True) -> Path:
    """A tokenizer of words between white space, its special tokens among the pieces."""
    library = Library(model)
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["[UNK]", *SPECIALS]) if special else library.add_tokens(list(SPECIALS))
    path = folder / "tokenizer.json"
    library.save(str(path))
    return path


def _vocab(*pieces: str) -> dict[str, int]:
    return {piece: token_id for token_id, piece in enumerate(["[UNK]", *SPECIALS, *pieces])}


def _word_level(folder: Path) -> Path:
    return _words(folder, models.WordLevel(_vocab("the", "cat"), unk_token="[UNK]"))


def _wordpiece(folder: Path) -> Path:
    return _words(folder, models.WordPiece(_vocab("the", "cat", "##s", "##>", "<", "##/"), unk_token="[UNK]"))


def _merging_bpe(folder: Path, special: bool = True, ignore_merges: bool = False) -> Path:
    characters = sorted(set("the cat</s>|npdu>[UNK]"))
    parts = ["</", "s>", "</s>a", "th", "the"]
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("</s>", "a"), ("t", "h"), ("th", "e")]
    model = models.BPE(_vocab(*characters, *parts), merges, unk_token="[UNK]", ignore_merges=ignore_merges)
    return _words(folder, model, special)


def _named_in_the_config(folder: Path, make: Callable[[Path], Path]) -> Path:
    path = make(folder)
    config = {"eos_token": "</s>", "pad_token": {"content": "<pad>"}, "bos_token": "<|end|>", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def _added_text(folder: Path) -> Path:
    path = small.byte_level_bpe(folder)
    library = Library.from_file(str(path))
    library.add_tokens(list(SPECIALS))
    library.save(str(path))
    return path


def _not_added(folder: Path) -> Path:
    path = _wordpiece(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens": []}))
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "unigram": _unigram,
    "word_level": _word_level,
    "wordpiece": _wordpiece,
    "merging_bpe": _merging_bpe,
    "word_matching_bpe": lambda folder: _merging_bpe(folder, ignore_merges=True),
    "added_as_text": lambda folder: _named_in_the_config(folder, _added_text),
    "merged_and_added_as_text": lambda folder: _named_in_the_config(
        folder, lambda path: _merging_bpe(path, special=False)
    ),
    "only_in_the_model": lambda folder: _named_in_the_config(folder, _not_added),
}


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Library]]:
    """Each tokenizer, and the library's of the same file."""
    paths = {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}
    libraries = {name: Library.from_file(str(path)) for name, path in paths.items()}
    for library in libraries.values():
        library.no_truncation()
        library.no_padding()
    return {name: (tokenizers.load(str(path)), libraries[name]) for name, path in paths.items()}


@pytest.mark.parametrize("text", ["{}", "the {} cat", "the{0}cat{0}", "{0}{0} the", " {} "])
@pytest.mark.parametrize("special", [*SPECIALS, "[UNK]"])
@pytest.mark.parametrize("name", MAKERS)
def test_the_text_of_a_special_token_is_text(
    name: str, both: dict[str, tuple[Tokenizer, Library]], special: str, text: str
) -> None:
    tokenizer, library = both[name]
    unknown = role_id(tokenizer, "unk")
    encoding = tokenizer.encode(text.format(special))
    small.check_tiling(text.format(special), encoding)
    assert not set(encoding.ids.tolist()) & (set(tokenizer.special_roles) - {unknown})
    token_id = library.token_to_id(special)
    assert token_id is None or token_id in tokenizer.special_roles
    assert token_id in (None, unknown) or token_id not in encoding.ids


@given(st.data())
@settings(max_examples=100)
@pytest.mark.parametrize("name", MAKERS)
def test_ids_of_other_text_and_of_all_pieces_are_those_of_the_library(
    name: str, both: dict[str, tuple[Tokenizer, Library]], data: st.DataObject
) -> None:
    tokenizer, library = both[name]
    text = data.draw(st.text(alphabet="the cats </|n\n中\ufffe\uffff>", max_size=20))
    if not any(special in text for special in (*SPECIALS, "<s>")):
        assert tokenizer.encode(text).ids.tolist() == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.vocab_size == library.get_vocab_size()


def test_every_piece_keeps_its_id_and_its_bytes(both: dict[str, tuple[Tokenizer, Library]]) -> None:
    for tokenizer, library in both.values():
        for piece, token_id in library.get_vocab().items():
            if piece in (*SPECIALS, "<unk>", "[UNK]"):
                assert token_id in tokenizer.special_roles
                assert tokenizer.token_bytes(token_id) == b""
            else:
                assert tokenizer.token_bytes(token_id) or token_id in tokenizer.special_roles


def test_a_single_character_that_is_named_as_a_marker_still_spells_text(tmp_path: Path) -> None:
    path = _wordpiece(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<"}))
    ids = tokenizers.load(str(path)).encode("<s").ids.tolist()
    assert ids == Library.from_file(str(path)).encode("<s").ids
