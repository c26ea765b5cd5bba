"""What arms differ in beyond their method, parameters and budget, from their records: in words, where it is anything.

Arms whose model, checkpoint, frames or questions differ are not comparable: they stand in tables of their own, whose
names say what differs. Whatever else differs stands in the labels of a table's rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stsimdiff.report.text import one_line

if TYPE_CHECKING:
    from stsimdiff.report.arm import StoredArm

QUESTIONS = ("task", "revision", "prompt", "decoder", "code")
"""Settings of a benchmark that change what is asked, or the frames that are shown."""
EXACT = ("pyav", "torchcodec")
"""Decoders that give exactly the frames asked for, and so the same."""
UNTOLD = {
    "model": (
        "name", "path", "checkpoint", "frames", "sampling", "fps", "device", "device_map", "threads",
        "layers", "attention",
    ),
    "benchmark": (
        *QUESTIONS, "name", "data", "root", "categories", "limit", "chance", "note", "macro", "allow_missing",
        "video_seconds", "missing_questions", "split", "server", "world", "moments",
    ),
}  # fmt: skip
"""Settings that change no answer, or are said elsewhere."""
RECORD = (
    "format", "arm", "method", "label", "compressor", "budget", "protocol", "fidelity", "code", "seed",
    "provenance", "resumed",
)  # fmt: skip
"""Keys of a record that are no settings, or that a label says in its own words."""
SHORTEST = 4
"""Digits that a fingerprint is cut to, unless more are needed."""


def model_names(arms: Sequence[StoredArm]) -> dict[str, str]:
    """Name of each arm's model, with checkpoint and frames where the name alone would mean two models."""
    prefixes = ("", "checkpoint ", "", "protocol ")
    parts = {
        arm.id: [prefix + part for prefix, part in zip(prefixes, arm.model, strict=True)] for arm in arms
    }
    return _named({id_: (name, tuple(rest)) for id_, (name, *rest) in parts.items()})


def benchmark_names(arms: Sequence[StoredArm]) -> dict[str, str]:
    """Name of each arm's benchmark, with what changes its questions where the name alone would mean two."""
    return _named({arm.id: (arm.benchmark, tuple(_questions(arm))) for arm in arms})


def questions_key(arm: StoredArm) -> tuple[str, ...]:
    """Equal for arms that were asked the same questions about the same frames."""
    return (arm.benchmark, *_questions(arm))


def all_but_code(arm: StoredArm) -> tuple[Any, ...]:
    """Equal for arms that differ in nothing but the code that answered: the method's, or any other."""
    rest = [
        setting
        for setting in _flat(_label_settings(arm.record))
        if setting[0] not in ("beneath", "model.code")
    ]
    questions = [question for question in _questions(arm) if not question.startswith("task's code")]
    method = arm.compressor.get("_target_"), arm.configured, arm.kind, arm.retention, arm.record.get("seed")
    return (*method, arm.model, arm.benchmark, *questions, *rest)


def _questions(arm: StoredArm) -> list[str]:
    benchmark = arm.record["benchmark"]
    headings = {"revision": "data", "code": "task's code"}
    parts = []
    for name in QUESTIONS:
        value = benchmark.get(name)
        if name == "decoder" and value in EXACT:
            value = "exact"
        parts.append(f"{headings.get(name, name)} {'unknown' if value is None else one_line(str(value))}")
    return parts


def _named(arms: Mapping[str, tuple[str, tuple[str, ...]]]) -> dict[str, str]:
    """Names, with those of their parts that differ between arms of one name.

    The last part, which repeats much of the others, is left out where they suffice.
    """
    names = {}
    for id_, (name, parts) in arms.items():
        same = sorted({other for shown, other in arms.values() if shown == name})
        differing = [i for i, values in enumerate(zip(*same, strict=True)) if len(set(values)) > 1]
        if len(differing) > 1 and len({tuple(other[i] for i in differing[:-1]) for other in same}) == len(
            same
        ):
            differing.pop()
        details = ", ".join(parts[i] for i in differing)
        names[id_] = f"{name} ({details})" if details else name
    return names


def settings(arms: Sequence[StoredArm]) -> dict[str, dict[str, str]]:
    """Of each arm the settings in which any two of them differ, as text by name: ``model.pooling``."""
    flat = {arm.id: dict(_flat(_label_settings(arm.record))) for arm in arms}
    names = dict.fromkeys(name for values in flat.values() for name in values)
    differing = [name for name in names if len({values.get(name) for values in flat.values()}) > 1]
    shown = {
        name: _shortened([values[name] for values in flat.values() if name in values]) for name in differing
    }
    return {
        id_: {name: shown[name](values[name]) for name in differing if name in values}
        for id_, values in flat.items()
    }


def swept(arms: Sequence[StoredArm]) -> dict[str, dict[str, Any]]:
    """Of each arm the parameters in which the arms of its method differ, with their values."""
    parameters: dict[str, dict[str, Any]] = {arm.id: {} for arm in arms}
    for same in _grouped(arms, lambda arm: arm.method).values():
        for name in dict.fromkeys(name for arm in same for name in arm.compressor if name != "_target_"):
            values = [arm.compressor.get(name) for arm in same]
            if len({json.dumps(value, sort_keys=True) for value in values}) > 1:
                for arm in same:
                    value = arm.compressor.get(name)
                    plain = value is None or isinstance(value, (bool, int, float, str))
                    parameters[arm.id][one_line(name)] = value if plain else json.dumps(value, sort_keys=True)
    return parameters


def order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, before words by letter."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return not number, float(value) if number else 0.0, str(value)


def labels(arms: Sequence[StoredArm]) -> dict[str, str]:
    """Labels by arm id, unique in a block: method, parameters, and what else the arms of a table differ in."""
    differing = settings(arms)
    details = {arm.id: [f"{name}={value}" for name, value in differing[arm.id].items()] for arm in arms}
    values = swept(arms)
    named = {}
    for arm in arms:
        named[arm.id] = arm.label
        # A default is named too where others differ from it; a switch that is as it is by default goes without saying.
        if arm.label == arm.configured:
            method, *parts = arm.label.split(" ")
            parts += [
                f"{name}={_text(value)}"
                for name, value in values[arm.id].items()
                if not isinstance(value, bool) and f" {name}=" not in f" {arm.configured}"
            ]
            if all("=" in part for part in parts):
                # In one order in all rows, whichever of them are defaults.
                turns = {name: turn for turn, name in enumerate(values[arm.id])}
                parts.sort(key=lambda part: turns.get(part.partition("=")[0], len(turns)))
            named[arm.id] = " ".join([method, *parts])
    for same in _grouped(arms, lambda arm: arm.method).values():
        codes = [one_line(str(arm.record.get("code"))) for arm in same]
        if len(set(codes)) > 1:
            short = _shortened(codes)
            for arm, code in zip(same, codes, strict=True):
                details[arm.id].append(f"code {short(code)}")

    def label(arm: StoredArm) -> str:
        return " ".join([named[arm.id], *details[arm.id]])

    def place(arm: StoredArm) -> tuple:
        return label(arm), arm.retention, None if arm.reference else arm.kind

    for same in _grouped(arms, place).values():
        if len(same) > 1:
            flat = [dict(_flat({"seed": arm.record.get("seed"), **arm.compressor})) for arm in same]
            names = dict.fromkeys(name for arm_parameters in flat for name in arm_parameters)
            for arm, arm_parameters in zip(same, flat, strict=True):
                details[arm.id] += [
                    f"{name}={arm_parameters[name]}"
                    for name in names
                    if name in arm_parameters
                    and any(other.get(name) != arm_parameters[name] for other in flat)
                ]
    labelled: dict[str, str] = {}
    for same in _grouped(arms, place).values():
        short = _shortened([arm.id for arm in same], 6)
        labelled |= {arm.id: label(arm) + (f" #{short(arm.id)}" if len(same) > 1 else "") for arm in same}
    return labelled


def greek(label: str) -> str:
    """A label as figures and papers write it: ``τ_sim=0.7`` for ``tau_sim=0.7``."""
    return re.sub(r"\btau(?=[_=]|\b)", "τ", label)


def _grouped(arms: Iterable[StoredArm], key: Callable[[StoredArm], Any]) -> dict[Any, list[StoredArm]]:
    groups: dict[Any, list[StoredArm]] = {}
    for arm in arms:
        groups.setdefault(key(arm), []).append(arm)
    return groups


def _label_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record that may stand in a label."""
    values = {name: value for name, value in record.items() if name not in RECORD}
    for group, untold in UNTOLD.items():
        values[group] = {name: value for name, value in record[group].items() if name not in untold}
    return values


def _flat(value: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{before}{name}.")
        else:
            yield one_line(f"{before}{name}"), _text(item)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _shortened(values: Sequence[str], shortest: int = SHORTEST) -> Callable[[str], str]:
    """Cuts fingerprints to as many digits as tell them apart."""
    if not all(re.fullmatch("[0-9a-f]{8,}", value) for value in values):
        return lambda value: value
    longest = max(map(len, values))
    apart = (n for n in range(shortest, longest) if len({value[:n] for value in values}) == len(set(values)))
    length = next(apart, longest)
    return lambda value: value[:length]
