"""What an annotation allows is what is taken, and what the message says."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from stsimdiff import schema
from stsimdiff.errors import ConfigError

Cosine = Annotated[float, Field(ge=-1, le=1, examples=[0.8])]
Layers = Literal["auto"] | Annotated[int, Field(ge=2)]
Devices = (
    None | Literal["auto"] | Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(description="by module")]
)


@pytest.mark.parametrize(
    ("value", "hint", "taken"),
    [(1, Cosine, 1.0), ("auto", Layers, "auto"), (2, Layers, 2), ({"a": 0}, Devices, {"a": 0}), (None, Devices, None)],
)  # fmt: skip
def test_values_are_taken_as_their_type_has_them(value, hint, taken) -> None:
    found = schema.check("x", value, hint)
    assert found == taken and type(found) is type(taken)


@pytest.mark.parametrize(
    ("value", "hint", "said"),
    [
        (2, Cosine, "x=2 is out of range; allowed: a number in [-1, 1]; for example 0.8"),
        (True, Cosine, "x=True is out of range; allowed: a number in [-1, 1]; for example 0.8"),
        (float("nan"), Cosine, "x=nan is out of range; allowed: a number in [-1, 1]; for example 0.8"),
        (2**63, int, "x=9223372036854775808 is out of range; allowed: at most 9223372036854775807"),
        (28.0, Layers, "x=28.0 is out of range; allowed: auto or a whole number from 2"),
        (
            "light",
            Literal["dark", "lighter"],
            "x=light is unknown; allowed: dark, lighter; did you mean lighter?",
        ),
        (1, bool, "x=1 is out of range; allowed: true, false"),
        ({"a": -1}, Devices, "x.a=-1 is out of range; allowed: a whole number from 0"),
        ("cpu", Devices, "x='cpu' is out of range; allowed: null, auto or by module"),
    ],
)
def test_a_message_says_value_and_what_is_allowed(value, hint, said) -> None:
    with pytest.raises(ConfigError) as refused:
        schema.check("x", value, hint)
    assert str(refused.value) == said
