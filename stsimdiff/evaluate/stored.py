"""What ``arm.json`` and the lines of ``answers.jsonl`` hold: types of values, their checks, and strict JSON.

Which files there are, and which of their lines count, is in :mod:`stsimdiff.evaluate.store`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import to_json
from typing_extensions import NotRequired, TypedDict

from stsimdiff.budget import KINDS
from stsimdiff.errors import DataError
from stsimdiff.terminal import clean

Row = dict[str, Any]
REFERENCES = ("none", "no_video")
"""Methods without a retention of their own: all tokens, the question alone. They stand in the 100 % block."""
OWN = ("category", "video")
"""Columns of every stored line, whatever its benchmark's rows have; ``columns`` holds those."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("should not be blank")
    return text


Name = Annotated[str, AfterValidator(_not_blank)]


class _Error(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    type: NotRequired[str | None]
    message: NotRequired[str | None]


class _Found(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
    tokens: Count
    in_time: Count
    in_place: Count
    rows: Count


class _Truth(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
    tokens: Count
    rows: Count
    kept: _Found
    event: _Found


class _Moment(TypedDict):
    """As ``evaluate.moments`` counts them."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
    question: _Truth
    video: _Truth


class _Line(TypedDict):
    """What a stored line must hold, and of what kind what it may hold is."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    id: str
    video: str
    # Lines of revisions before call it family; a run goes on in the same file.
    category: Annotated[str | None, Field(validation_alias=AliasChoices("category", "family"))]
    correct: bool | None
    error: _Error | None
    columns: NotRequired[dict[str, Any] | None]
    answer: NotRequired[str | None]
    parsed: NotRequired[str | None]
    target: NotRequired[str | None]
    stock_parsed: NotRequired[str | None]
    stock_correct: NotRequired[bool | None]
    stock_error: NotRequired[str | None]
    video_tokens: NotRequired[Count | None]
    text_tokens: NotRequired[Count | None]
    tokens_per_layer: NotRequired[list[Count] | None]
    retention_tokens: NotRequired[Count | None]
    retention_compute: NotRequired[Count | None]
    llm_flops: NotRequired[Count | None]
    llm_flops_all: NotRequired[Count | None]
    kv_kept: NotRequired[Count | None]
    prefill: NotRequired[Literal["whole", "continued"] | None]
    """Times of an answer that continued from a prefix are not taken; lines without it were prefilled whole."""
    times: NotRequired[dict[str, Number | None] | None]
    reasons: NotRequired[dict[str, Any] | None]
    overlay: NotRequired[dict[str, Any] | None]
    moment: NotRequired[_Moment | None]


class _Budget(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    kind: Literal[KINDS]  # type: ignore[valid-type]
    retention: Annotated[Number, Field(gt=0, le=1)]


class _Budgeted(TypedDict):
    budget: _Budget


class _Named(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    name: Name


class _Benchmark(_Named):
    families: NotRequired[list[str] | None]
    chance: NotRequired[Number | None]
    note: NotRequired[str | None]
    server: NotRequired[str | None]


class _Record(TypedDict):
    """What ``arm.json`` must hold, and of what kind what it may hold is."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    arm: Name
    method: Name
    label: str
    budget: dict[str, Any] | None
    model: _Named
    benchmark: _Benchmark
    compressor: NotRequired[dict[str, Any] | None]
    fidelity: NotRequired[dict[str, str] | None]
    provenance: NotRequired[dict[str, Any] | None]
    resumed: NotRequired[list[dict[str, Any]]]


_LINE, _RECORD, _BUDGETED = TypeAdapter(_Line), TypeAdapter(_Record), TypeAdapter(_Budgeted)


def checked_line(line: bytes, place: str) -> Row:
    """The object of a stored line, with whole numbers as floats where numbers are counted with.

    Args:
        line: without its end; where nothing is wrong with it, it is parsed and checked in one go.
        place: file and line number, for the message.

    Raises:
        DataError: for a line that is damaged, with name and value.
    """
    row: Any = None
    with contextlib.suppress(ValidationError):  # which names the value less well
        row = _LINE.validate_json(line)
    # A key that is there twice, and what is no number of JSON, pass unseen there; the former leaves its colon.
    if row is None or b"NaN" in line or b"Infinity" in line or line.count(b":") != to_json(row).count(b":"):
        row = _checked(parsed_line(line, place), _LINE, place)
    return row


def parsed_line(line: bytes, place: str) -> Row:
    """The object of a line, whose ``id`` is a text; nothing else of it is checked.

    Raises:
        DataError: for a line that is no JSON, or has no id.
    """
    try:
        row = strict_json(line)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error}); remove the line to go on") from None
    if not isinstance(row, dict):
        problem = f"a {type(row).__name__} where a stored answer was expected"
    elif not isinstance(row.get("id"), str):
        problem = f"id={row['id']!r}; allowed: a text" if "id" in row else "a stored answer without id"
    else:
        return _renamed(row, "family", "category")
    raise DataError(f"{place}: {problem:.200}; remove the line to go on")


def _renamed(values: Row, before: str, now: str) -> Row:
    """The values, the one that revisions before stored under another name under the one that it has now."""
    if before not in values:
        return values
    return {now if name == before else name: value for name, value in values.items()}


def checked_arm(record: Row, place: str) -> Row:
    """What an ``arm.json`` says, each value checked, ``benchmark.families`` as ``categories``.

    Raises:
        DataError: for a value that is missing or of another kind, with its name.
    """
    _checked(record, _RECORD, place)
    if record["method"] not in REFERENCES:
        _checked({"budget": record["budget"]}, _BUDGETED, place)
    return record | {"benchmark": _renamed(record["benchmark"], "families", "categories")}


def _checked(value: Any, form: TypeAdapter, place: str) -> dict[str, Any]:
    """The value with whole numbers as floats where numbers are counted with.

    Raises:
        DataError: for a value that is missing or of another kind, with its name.
    """
    try:
        return form.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            problem = f"holds no {name}"
        else:
            shown = clean(repr(first["input"]))
            problem = f"{name}={shown[:60]}: {first['msg'].replace('Input should', 'should').lower()}"
        raise DataError(f"{place}: {problem}; the file was changed or damaged") from None


def check_column(column: str, known: Iterable[str], place: str) -> None:
    """Raise :class:`DataError` for a column to break accuracies down by that the rows of a benchmark do not have."""
    columns = sorted({*known, *OWN})
    if column not in columns:
        now = "; family is now called category" if column == "family" else ""
        raise DataError(
            f"breakdown={column}: {place} has no such column; its rows have {', '.join(columns)}{now}"
        )


def strict_json(text: bytes | str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: for what is no JSON: NaN, numbers without end, a key that is there twice, and objects in objects
            beyond any depth that is written here.
    """
    try:
        # As json.loads reads bytes; it would make a decoder for each line.
        return _DECODER.decode(
            text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")
        )
    except RecursionError:
        raise ValueError("nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return row


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)


def json_bytes(value: Row, **options: Any) -> bytes:
    """JSON in UTF-8; what UTF-8 cannot hold (lone surrogates, which a tokenizer may give) as escapes: ``\\udcff``."""
    try:
        return json.dumps(value, ensure_ascii=False, **options).encode()
    except UnicodeEncodeError:
        return json.dumps(value, **options).encode()
