"""Which answers are a letter, and which are not."""

from __future__ import annotations

import pytest

from stsimdiff.evaluate.parsing import parse_letter


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        " B\n",
        "(B)",
        "[B]",
        "B.",
        "B)",
        "B. a red ring",
        "B: a red ring",
        "B, since",
        "(B) red",
        "**B**",
    ]
    + [
        "The best answer is B.",
        "Answer: B",
        "The answer is (B).",
        "Option B",
        "answer: b",
        "The correct option is B",
    ],
)
def test_a_letter(answer: str) -> None:
    assert parse_letter(answer) == "B"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " ",
        "A man walks",
        "a man",
        "Because",
        "E",
        "E.",
        "The red one",
        "A or B",
        "A, or B",
        "I",
        "AB",
        "3",
        "Answer",
    ],
)
def test_no_letter(answer: str) -> None:
    assert parse_letter(answer) is None


def test_more_options() -> None:
    assert parse_letter("E", options=5) == "E"
    assert parse_letter("F", options=5) is None
