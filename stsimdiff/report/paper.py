"""What the paper printed (``results/paper``): context beside our tables, never mixed into their rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from stsimdiff import resources
from stsimdiff.errors import DataError

if TYPE_CHECKING:
    from stsimdiff.report.section import TableRow

TABLE1 = "table1_llava_video"
AUTHORS, PAPER = "llava_video_authors", "st_simdiff_paper"
"""The protocols of Table 1: its all-token row is from the model's authors, the rows of its methods are ST-SimDiff's."""

_COLUMNS = {
    "videomme": "videomme_overall",
    "longvideobench": "longvideobench_overall",
    "egoschema": "egoschema",
}
_QUESTIONS = {"videomme": 2700, "longvideobench": 1337}
"""Questions of the whole benchmark, in the split that is offered here. The paper's EgoSchema is the full set, whose
answers a server holds: the public subset has no published number to stand beside."""
_WHOLE = 0.98
"""Share of them from which on the benchmark counts as answered."""
_ABLATION = "ablation_llava_video_r30"
_ALL_TOKENS = "LLaVA-Video (all tokens)"
_ABLATIONS = {
    "st_simdiff similarity=False difference=False": "importance pruning only (baseline)",
    "st_simdiff edges=spatial difference=False": "+ Sim (spatial edges)",
    "st_simdiff edges=temporal difference=False": "+ Sim (temporal edges)",
    "st_simdiff difference=False": "+ Sim (spatial + temporal edges)",
}
"""The paper's name of an arm by our label: a method with other parameters is not the one that it printed."""


_OTHERS = {
    "nvila": ("NVILA-8B", "nvila_8b_r50", "{method} at 50 %", "ST-SimDiff's paper", "all tokens"),
    "qwen25vl": ("Qwen2.5-VL-7B", "qwen25vl_upper_bound", "all tokens", "{source}", "methods"),
}
"""Models whose printed accuracies are of no published protocol: the model's name there, the table, what a line of it is
of and where it was printed, and what the paper did not print."""


@dataclass(frozen=True)
class Gate:
    """Whether our all-token accuracy is the published one, which every comparison with published numbers rests on."""

    met: bool
    sentence: str


def paper_table(name: str) -> pd.DataFrame:
    """One of the published tables; a number that was not available is NaN, accuracies in percent.

    Args:
        name: the file's name, with or without ``.csv``.

    Raises:
        DataError: no such table in the installed package or the repository.
    """
    folder = resources.folder("results_paper")
    path = folder / f"{name.removesuffix('.csv')}.csv"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.csv")))
        raise DataError(f"no published table {name!r} in {folder}; there are: {known}")
    return pd.read_csv(path)


def printed_column(benchmark: str) -> str | None:
    """The paper's column of a benchmark's overall accuracy, None for a benchmark that is not in the paper."""
    return next((column for name, column in _COLUMNS.items() if plain(benchmark).startswith(name)), None)


def plain(name: str) -> str:
    """A name's letters and digits, by which spellings of one name are compared."""
    return re.sub("[^a-z0-9]", "", name.lower())


def paper_number(
    protocol: Mapping[str, Any],
    model: str,
    benchmark: str,
    label: str,
    retention: float,
) -> float:
    """What was published for an arm in the protocol that it was measured in, in percent; NaN where nothing was.

    Args:
        protocol: of the arm, as its record says it.
        model: the model's name, for example ``llava_video``.
        benchmark: the benchmark's name.
        label: of the arm; only a method with its own defaults is the paper's.
        retention: 0.3 for 30 %.

    Raises:
        DataError: when the installation lacks the paper's tables.
    """
    if protocol.get("changed") or benchmark not in _QUESTIONS or "llavavideo" not in plain(model):
        return float("nan")
    whole = label == "none"
    if protocol.get("name") != (AUTHORS if whole else PAPER):
        return float("nan")
    column = _COLUMNS[benchmark]
    # The paper's ST-SimDiff is our st_simdiff, and so on: of its own spelling only letters and digits count.
    spelled = {plain(name): name for name in paper_table(TABLE1)["method"]}
    name = _ALL_TOKENS if whole else spelled.get(label.replace("_", ""))
    accuracy = _cell(TABLE1, "method", name, column, retention)
    if accuracy != accuracy and abs(retention - 0.3) < 1e-6:
        brief = column.removesuffix("_overall")
        accuracy = _cell(_ABLATION, "configuration", _ABLATIONS.get(label), brief)
    return accuracy


def retained(rows: Sequence[TableRow], benchmark: str) -> str | None:
    """Accuracy in percent of the all-token row, ours beside the paper's; None where the paper printed none of the rows.

    Args:
        rows: of one table, its all-token row among them.
        benchmark: the benchmark's name.
    """
    whole = next((row for row in rows if row.method == "none" and row.n), None)
    beside = [row for row in rows if row.paper == row.paper and row.method != "none" and row.n]
    if whole is None or not whole.overall or not beside:
        return None
    theirs = printed_all_tokens(benchmark)
    sentences = []
    for row in beside:
        here, printed = 100 * row.overall / whole.overall, 100 * row.paper / theirs
        sentences.append(
            f"{row.label} at {100 * row.retention:.4g} % {here:.1f} and {printed:.1f} ({here - printed:+.1f})"
        )
    return (
        "Accuracy retained, in percent of the all-token row, ours and the paper's, which took its all-token row "
        f"({theirs:.1f}) from the model's authors: {'; '.join(sentences)}."
    )


def for_information(model: str, benchmark: str) -> str | None:
    """What was printed for a model in protocols that nobody published, and where; None for a model or benchmark for
    which there is none. No difference between such an accuracy and ours is one of the methods alone.
    """
    known = next((known for name, known in _OTHERS.items() if name in plain(model)), None)
    if known is None or benchmark == "egoschema":  # its printed accuracies are of the full set
        return None
    name, table, template, where, unknown = known
    column = printed_column(benchmark)
    reported = []
    if column:
        for line in paper_table(table).to_dict("records"):
            reported.append(
                (
                    template.format(**line),
                    line.get(column),
                    where.format(**line).removesuffix(" (all tokens)"),
                )
            )
        reported.append((unknown, None, "ST-SimDiff's paper"))
    others = paper_table("other_reported")
    for line in others[
        (others["model"] == name) & (others["benchmark"].map(plain) == plain(benchmark))
    ].to_dict("records"):
        reported.append((line["method"], line["value"], line["source"]))
    sources = [
        f"{of} {'not published' if value is None or value != value else f'{value:.1f}'} ({source})"
        for of, value, source in reported
    ]
    listed = (
        f"For information, as their protocols are not published, accuracies of {name}: {'; '.join(sources)}."
    )
    return listed if sources else None


def printed_all_tokens(benchmark: str) -> float:
    """The paper's all-token accuracy on a benchmark, in percent; NaN where it printed none."""
    column = printed_column(benchmark)
    return _cell(TABLE1, "method", _ALL_TOKENS, column) if column else float("nan")


def _cell(table: str, by: str, name: str | None, column: str, retention: float | None = None) -> float:
    frame = paper_table(table)
    if name is None or column not in frame:
        return float("nan")
    lines = frame[frame[by] == name]
    if retention is not None:
        lines = lines[(lines["retention"] - retention).abs() < 1e-6]
    return float(lines[column].iloc[0]) if len(lines) else float("nan")


def baseline_gate(
    protocol: Mapping[str, Any], model: str, benchmark: str, row: TableRow | None
) -> Gate | None:
    """How far our all-token accuracy is from the published one, in a sentence; None where none is to be expected.

    Args:
        protocol: of the arms, as their records say it.
        model: the model's name, for example ``llava_video``.
        benchmark: the benchmark's name, for example ``videomme``.
        row: of all tokens; None when there is no such arm.
    """
    name = protocol.get("name", "unnamed")
    if plain(benchmark).startswith("egoschema"):
        return None  # What is published is the full set's, and only a server can score that.
    if name in ("default", "unnamed"):
        known = any(word in plain(model) for word in ("llavavideo", "qwen25vl", "nvila"))
        if not known or not printed_column(benchmark):
            return None
        return Gate(
            False,
            "Baseline gate OPEN: a published accuracy counts in the protocol that it was measured in, and this run "
            f"names none (protocol={name}); protocol={AUTHORS} is that of LLaVA-Video's authors.",
        )
    published = protocol.get("all_tokens")
    if published is None:
        why = (
            protocol.get("unknown") or f"no all-token accuracy on {benchmark} is published in protocol {name}"
        )
        return Gate(False, f"Baseline gate OPEN: {why}.")
    line = f"the all-token accuracy published in protocol {name} is {published:.1f}"
    if protocol.get("remeasured") is not None:
        line += f" (others measured {protocol['remeasured']:.1f})"
    if protocol.get("changed"):
        changed = " ".join(protocol["changed"])
        return Gate(False, f"Baseline gate OPEN: {line}; this run changed {changed}: not the same setting.")
    if row is None or not row.n:
        return Gate(
            False, f"Baseline gate OPEN: {line}, this run has no all-token answers: no comparison yet."
        )
    ours = f"ours is {row.overall:.1f} ({row.ci_low:.1f} to {row.ci_high:.1f})"
    if row.n < _WHOLE * _QUESTIONS.get(benchmark, 0):
        few = f"on only {row.n} of {_QUESTIONS[benchmark]} questions"
        return Gate(False, f"Baseline gate OPEN: {line}, {ours} {few}: no comparison yet.")
    apart = abs(row.overall - published)
    if apart > protocol["tolerance"] + 1e-9:
        return Gate(
            False,
            f"Baseline gate MISSED: {line}, {ours}, {apart:.1f} points apart: a comparison with published numbers does "
            "not hold.",
        )
    return Gate(True, f"Baseline gate met: {line}, {ours}.")
