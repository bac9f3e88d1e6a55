"""Which special tokens of two tokenizers stand for the same: by role, else by their place in a chat template."""

from __future__ import annotations

from collections.abc import Mapping

_PLACES = {
    "turn_start": (
        *("<|im_start|>", "<|start_header_id|>", "<|header_start|>", "<start_of_turn>"),
        *("<|start|>", "<|start_of_role|>", "<|start_of_turn|>"),
    ),
    "role_end": ("<|end_header_id|>", "<|header_end|>", "<|im_sep|>", "<|message|>", "<|end_of_role|>"),
    "turn_end": ("<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>"),
    "system_turn": ("<|system|>", "<|System|>", "[SYSTEM_PROMPT]"),
    "user_turn": ("<|user|>", "<｜User｜>", "[INST]"),
    "assistant_turn": ("<|assistant|>", "<｜Assistant｜>", "[/INST]"),
    "fill_prefix": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "<｜fim▁begin｜>", "[PREFIX]", "▁<PRE>"),
    "fill_suffix": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "<｜fim▁hole｜>", "[SUFFIX]", "▁<SUF>"),
    "fill_middle": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>", "<｜fim▁end｜>", "[MIDDLE]", "▁<MID>"),
}

CHAT_PLACES: Mapping[str, str] = {marker: place for place, markers in _PLACES.items() for marker in markers}
"""Markers of published chat and fill-in templates: marker -> what stands at its place in any of them."""


def special_partners(student_roles: Mapping[int, str], teacher_roles: Mapping[int, str]) -> dict[int, int]:
    """Student id -> teacher id of the special tokens that stand for the same.

    An equal role (for most markers that is their own text) comes first; where a teacher has it twice, its lowest id.
    What is then left on both sides pairs by its place in a chat template, one to one, lowest ids first.
    """
    by_role = _lowest_ids(teacher_roles)
    partners = {token_id: by_role[role] for token_id, role in student_roles.items() if role in by_role}
    taken = set(partners.values())
    free_places = _places({token_id: role for token_id, role in teacher_roles.items() if token_id not in taken})
    open_places = _places({token_id: role for token_id, role in student_roles.items() if token_id not in partners})
    partners |= {token_id: free_places[place] for place, token_id in open_places.items() if place in free_places}
    return partners


def _lowest_ids(roles: Mapping[int, str]) -> dict[str, int]:
    return {role: token_id for token_id, role in sorted(roles.items(), reverse=True)}


def _places(roles: Mapping[int, str]) -> dict[str, int]:
    return _lowest_ids({token_id: CHAT_PLACES[role] for token_id, role in roles.items() if role in CHAT_PLACES})
