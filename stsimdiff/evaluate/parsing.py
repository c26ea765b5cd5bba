"""An option's letter from a model's answer. What is not plainly a letter is not parsed, and never guessed."""

from __future__ import annotations

import re

LETTERS = "ABCDEFGHIJ"

_LEAD = r"^(?:(?:the\s+)?(?:best|correct|right|final)?\s*(?:answer|option|choice)\s*(?:is)?\s*:?\s*)?"
_BRACKETED = re.compile(_LEAD + r"[\"'*]*[(\[]\s*([A-J])\s*[)\]](?P<rest>.*)$", re.DOTALL | re.IGNORECASE)
_BARE = re.compile(
    _LEAD + r"[\"'*]*([A-J])(?P<rest>(?:[\"'*]*\s*$|[\"'*]*[.:,)].*))$", re.DOTALL | re.IGNORECASE
)
_SECOND = re.compile(r"\b(?:or|and)\s+[(\[]?[A-J]\b")


def parse_letter(answer: str, options: int = 4) -> str | None:
    """The letter that an answer gives, or ``None``.

    ``B``, ``(B)``, ``B.``, ``B. a red ring``, ``B: a red ring`` and ``The best answer is B.`` give ``B``.
    ``A man walks``, ``Because``, ``A or B``, ``E`` of four options and an empty answer give ``None``.

    Args:
        answer: the model's text.
        options: number of options, at most 10.
    """
    text = answer.strip()
    match = _BRACKETED.match(text) or _BARE.match(text)
    if match is None or _SECOND.search(match["rest"]):
        return None
    letter = match[1].upper()
    return letter if letter in LETTERS[:options] else None
