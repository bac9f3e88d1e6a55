"""A Hugging Face `tokenizer.json` made so that no text is read as one of its special tokens."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

Object = Mapping[str, Any]


def without_specials_in_text(description: Object, specials: Set[str]) -> tuple[Object, Mapping[str, str]]:
    """The same tokenizer, to which the text of a special token is text like any other, all ids as they were.

    The library passes over added tokens that the file calls special, so all are called that. It does not pass over
    pieces of the model: these get names that no text has.

    description  a parsed `tokenizer.json`
    specials     the special tokens' texts
    Returns the description, itself where nothing has to be done, and new name -> text of what is renamed.
    """
    new_names = {name: f"{name}{uuid.uuid4()}" for name in _readable(description["model"], specials)}
    added: Sequence[Object] = description.get("added_tokens") or ()
    if not new_names and all(token["special"] for token in added if token["content"] in specials):
        return description, {}
    changes: dict[str, Any] = {
        "model": _renamed(description["model"], new_names),
        "added_tokens": [_special(token, new_names) if token["content"] in specials else token for token in added],
        "post_processor": None,  # it may name special tokens, and adds nothing but them
    }
    return {**description, **changes}, {new_name: name for name, new_name in new_names.items()}


def _special(token: Object, new_names: Mapping[str, str]) -> Object:
    name = str(token["content"])
    return {**token, "content": new_names.get(name, name), "special": True}


def _readable(model: Object, specials: Set[str]) -> Set[str]:
    """The special tokens that a model may find in a text. A BPE finds what it merges.

    Not single characters: they are what text is spelled with, whatever else they are named for.
    """
    pieces = {name for name in _pieces(model) if name in specials and len(name) > 1}
    if not pieces or "merges" not in model or model.get("ignore_merges"):
        return pieces
    return pieces & {_sides_and_merged(model, merge)[2] for merge in model["merges"]}


def _pieces(model: Object) -> Collection[str]:
    return [piece for piece, _ in model["vocab"]] if _is_unigram(model) else model["vocab"]


def _is_unigram(model: Object) -> bool:
    """Whether the vocabulary is a list of pieces with their scores, whose places are their ids."""
    return isinstance(model["vocab"], list)


def _sides_and_merged(model: Object, merge: str | Sequence[str]) -> tuple[str, str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def _renamed(model: Object, new_names: Mapping[str, str]) -> Object:
    """A model with other names of some pieces, which no merge makes or uses any more."""
    changes: dict[str, Any] = {}
    if _is_unigram(model):
        changes["vocab"] = [(new_names.get(piece, piece), score) for piece, score in model["vocab"]]
    else:
        changes["vocab"] = {new_names.get(piece, piece): token_id for piece, token_id in model["vocab"].items()}
    if model.get("unk_token") in new_names:
        changes["unk_token"] = new_names[model["unk_token"]]
    if "merges" in model:
        changes["merges"] = [
            merge for merge in model["merges"] if new_names.keys().isdisjoint(_sides_and_merged(model, merge))
        ]
    return {**model, **changes}
