"""Arms of one model and benchmark beside each other: their numbers on the questions that all answered, and what
a reader must be told before comparing them. Comparisons in pairs are made in ``pairs``, sentences in ``verdict``.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd

from stsimdiff.budget import KINDS, TOLERANCE, Budget, missed
from stsimdiff.data.parsing import mostly_unread
from stsimdiff.errors import VideoError
from stsimdiff.evaluate.store import SUBMISSION
from stsimdiff.evaluate.stored import REFERENCES
from stsimdiff.report.arm import StoredArm
from stsimdiff.report.columns import taken
from stsimdiff.report.equal_compute import at_equal_compute, median_compute
from stsimdiff.report.hard import with_hard
from stsimdiff.report.labels import labels, order, settings, swept
from stsimdiff.report.pairs import all_pairs
from stsimdiff.report.paper import baseline_gate, for_information, paper_number, printed_all_tokens, retained
from stsimdiff.report.provenance import provenance
from stsimdiff.report.section import CONTROLS, EMPTY, FAULTS, INACTIVE, NAN, WHOLE, Section, TableRow
from stsimdiff.report.statistics import Answers, Interval, clusters
from stsimdiff.report.text import one_line, printable
from stsimdiff.report.verdict import verdicts

MACRO = (
    "Column macro % is the mean over the categories, each counting the same (MLVU's M-Avg); overall % is over all "
    "questions. macro % is empty where a category has no answer."
)


MERGING = ("merged", "contextual")
"""Reasons of tokens that others were merged into."""


UNSCORED = "No accuracy, so no verdict: the answers are not public, and a server scores the predictions."


class ArmGroup:
    """The arms of one model and benchmark: they share their questions, whatever the kind of their budget."""

    def __init__(self, arms: list[StoredArm], samples: pd.DataFrame, model: str, benchmark: str) -> None:
        self.arms, self.model, self.benchmark = arms, model, benchmark
        by_arm = dict(list(samples.groupby("arm", sort=False)))
        self.stored = {arm.id: by_arm.get(arm.id, samples.iloc[:0]).set_index("id") for arm in arms}
        self.answered = {id_: rows[~rows["failed"]] for id_, rows in self.stored.items()}
        # An arm without a single answer would empty the common subset: it is left out here and named below.
        taking_part = [set(rows.index) for rows in self.answered.values() if len(rows)]
        self.common = sorted(set.intersection(*taking_part)) if taking_part else []
        self.compared = {
            id_: rows.loc[self.common] if len(rows) else rows for id_, rows in self.answered.items()
        }
        """What each arm answered to the common questions, in their order."""
        self.asked = set().union(*(rows.index for rows in self.stored.values()))
        self.labels = labels(arms)
        self.settings = settings(arms)
        self.swept = swept(arms)
        self.server = arms[0].server

    def sections(self) -> list[Section]:
        """A table for each kind of budget; one of the references alone where nothing else was answered."""
        kinds = [kind for kind in KINDS if any(arm.kind == kind and not arm.reference for arm in self.arms)]
        return [self._section(kind) for kind in kinds or [self.arms[0].kind]]

    def everything(self, arm: StoredArm) -> StoredArm | None:
        """All tokens with the settings of an arm, or else with any; None where they have no answers."""
        candidates = [other for other in self.arms if other.method == "none" and len(self.answered[other.id])]
        same = [other for other in candidates if self.settings[other.id] == self.settings[arm.id]]
        return next(iter(same or candidates), None)

    def _members(self, kind: str) -> list[StoredArm]:
        """The kind's arms, and all references: they have no retention, so no kind either."""
        return sorted((arm for arm in self.arms if arm.reference or arm.kind == kind), key=self._place)

    def _section(self, kind: str) -> Section:
        members = self._members(kind)
        categories = self._categories(members)
        answering = [arm for arm in members if self.common and len(self.answered[arm.id])]
        answers = self._answers(answering)
        accuracies = {arm.id: answers.accuracy(i) for i, arm in enumerate(answering)} if answers else {}
        full = {arm.id: self.everything(arm) for arm in answering}
        column = {arm.id: i for i, arm in enumerate(answering)}
        relative = {
            arm: answers.ratio(column[arm], column[whole.id]) if arm != whole.id else Interval(1.0, NAN, NAN)
            for arm, whole in full.items()
            if answers and whole is not None
        }
        unranked = [
            self._row(arm, kind, categories, accuracies.get(arm.id), relative.get(arm.id)) for arm in members
        ]
        unranked, hard = self._with_hard(unranked, answering) if answers else (unranked, [])
        rows = _ranked(at_equal_compute(unranked))
        planned = members[0].shown.proposed
        pairs = all_pairs(answering, self.labels, answers, kind, full, bool(planned)) if answers else []
        records = [arm.record for arm in members]
        about = [
            _benchmark_line(members[0], self.benchmark),
            *_prompt_line(members),
            _protocol_line(members[0]),
        ]
        # All arms of a group have one protocol, and so the name of one model.
        first = members[0]
        gate = baseline_gate(first.protocol, first.model[0], first.benchmark, _all_tokens(rows))
        beside = retained(rows, first.benchmark)
        printed = for_information(first.model[0], first.benchmark)
        about.append(provenance(records, scored=not self.server))
        remarks = [text for text in (gate and gate.sentence, beside, printed) if text]
        notes = [
            *remarks,
            *self._submissions(members),
            *self._coverage(members),
            *_warnings(rows, kind),
            *hard,
        ]
        macro = any(arm.record["benchmark"].get("macro") for arm in members)
        if macro:
            about.insert(1, MACRO)
        section = Section(
            self.model, self.benchmark, kind, categories, rows, pairs, notes, about, macro, planned=planned
        )
        judged = [UNSCORED] if self.server else verdicts(section)
        return replace(section, verdicts=judged, gate_met=gate is not None and gate.met)

    def _with_hard(self, rows: list[TableRow], arms: list[StoredArm]) -> tuple[list[TableRow], list[str]]:
        """The rows with their accuracies on the hard questions, of arms that have answers."""
        kept = {arm.id: self.compared[arm.id] for arm in arms}
        right = {id_: rows["correct"].to_numpy(dtype=bool) for id_, rows in kept.items()}
        full = {arm.id: everything.id for arm in arms if (everything := self.everything(arm)) is not None}
        videos = clusters(kept[arms[0].id]["video"])
        return with_hard(rows, right, full, videos)

    def _answers(self, arms: list[StoredArm]) -> Answers | None:
        """Right and wrong on the common questions, a column an arm; None where there is nothing to compare."""
        if not arms or self.server:
            return None
        kept = [self.compared[arm.id] for arm in arms]
        correct = np.stack([rows["correct"].to_numpy(dtype=bool) for rows in kept], axis=1)
        return Answers(correct, clusters(kept[0]["video"]))

    def _categories(self, members: list[StoredArm]) -> tuple[str, ...]:
        configured = [name for arm in members for name in arm.record["benchmark"].get("categories") or ()]
        declared = list(map(printable, configured))
        stored = [
            name for arm in members for name in sorted(self.stored[arm.id]["category"].dropna().unique())
        ]
        names = tuple(dict.fromkeys(declared + stored))
        # The one category of a benchmark that has no kinds of questions is what overall says already.
        return () if names == (WHOLE,) else names

    def _row(
        self,
        arm: StoredArm,
        kind: str,
        categories: tuple[str, ...],
        overall: Interval | None,
        relative: Interval | None,
    ) -> TableRow:
        rows = self.compared[arm.id]
        correct = rows["correct"].dropna().astype(bool)
        interval = overall or Interval(NAN, NAN, NAN)
        whole = relative or Interval(NAN, NAN, NAN)
        by_category = correct.groupby(rows["category"]).mean()
        achieved = {name: float(rows[f"retention_{name}"].mean()) for name in KINDS}
        means = {name: 100 * float(by_category.get(name, NAN)) for name in categories}
        known = not arm.reference and not math.isnan(achieved[kind])
        return TableRow(
            arm=arm.id,
            method=arm.method,
            label=self.labels[arm.id],
            bare=arm.bare,
            settings=repr((self.settings[arm.id], arm.record.get("code"))),
            swept=self.swept[arm.id],
            fidelity=arm.fidelity.get("word", ""),
            fault=_fault(arm, rows),
            retention=arm.retention,
            budget=kind,
            overall=100 * interval.value,
            ci_low=100 * interval.low,
            ci_high=100 * interval.high,
            relative=100 * whole.value,
            relative_low=100 * whole.low,
            relative_high=100 * whole.high,
            retention_tokens=achieved["tokens"],
            retention_compute=achieved["compute"],
            n=len(rows),
            n_failed=int(self.stored[arm.id]["failed"].sum()),
            categories=means,
            values=taken(rows),
            macro=_macro(means) if arm.record["benchmark"].get("macro") else NAN,
            n_missing=int((self.stored[arm.id]["error_type"] == VideoError.__name__).sum()),
            missed=known and missed(Budget(arm.kind, arm.retention), achieved[kind]),
            paper=paper_number(arm.protocol, arm.model[0], arm.benchmark, arm.configured, arm.retention),
            proposed=arm.proposed,
        )

    def _submissions(self, members: list[StoredArm]) -> list[str]:
        """How to have the predictions scored, where only a server can; what each arm's file holds."""
        if not self.server:
            return []
        printed = printed_all_tokens(members[0].benchmark)
        notes = [
            "NO ACCURACY: the answers are not public; a server scores the predictions, and nothing was sent to it. To "
            f"send a file: curl -X POST -H 'Content-Type: application/json' -d @FILE {self.server}",
            f"For information: the paper printed {printed:.1f} for all tokens of LLaVA-Video on this set.",
        ]
        for arm in members:
            rows = self.stored[arm.id]
            if (arm.folder / SUBMISSION).is_file():
                read, failed = int(rows["parsed"].notna().sum()), int(rows["failed"].sum())
                notes.append(
                    f"{self._name(arm)}: {arm.folder.name}/{SUBMISSION} in the run's folder has {read} of {len(rows)} "
                    f"answers; left out, which the server counts as missing: {len(rows) - read - failed} without a "
                    f"readable letter, {failed} that failed."
                )
        return notes

    def _coverage(self, members: list[StoredArm]) -> list[str]:
        """Which questions the rows stand on, and who is the reason that others were left out."""
        left_out = len(self.asked) - len(self.common)
        failed = set().union(*(rows.index[rows["failed"]] for rows in self.stored.values()))
        failed -= set(self.common)
        why = f" ({len(failed)} failed in an arm, {left_out - len(failed)} not stored by every arm yet)"
        rule = " Numbers and intervals change when an arm joins that lacks some of them."
        notes = [
            f"Compared on the {len(self.common)} questions that every arm answered; {left_out} left out"
            f"{why if left_out else ''}.{rule}"
        ]
        broken = []
        elsewhere = [arm for arm in self.arms if arm not in members]
        for arm in [*members, *elsewhere]:
            rows = self.stored[arm.id]
            name = self._name(arm)
            if arm in elsewhere:
                name += f" ({arm.kind}, in the table of that kind of budget)"
            errors = Counter(rows.loc[rows["failed"], "error_type"].fillna("unnamed error"))
            if not len(rows):
                silent = "NO ANSWERS: {} has stored nothing yet."
            elif not len(self.answered[arm.id]):
                silent = "NO ANSWERS: every sample of {} failed; it does not narrow the comparison."
            else:
                silent = ""
            if silent and arm in elsewhere:
                continue  # its own table says so
            if silent:
                notes.append(silent.format(name))
            elif len(rows) < len(self.asked):
                notes.append(f"NOT FINISHED: {name} has stored {len(rows)} of {len(self.asked)} questions.")
            if errors:
                kinds = ", ".join(f"{kind} x{count}" for kind, count in errors.most_common())
                broken.append(f"{name} {kinds}")
        if broken:
            notes.append(f"FAILED samples, which are no answers: {'; '.join(broken)}.")
        begun = [arm for arm in members if len(self.stored[arm.id])]
        unscored = [self._name(arm) for arm in begun if not (arm.folder / "metrics.json").is_file()]
        if unscored:
            names = "all arms" if len(unscored) == len(begun) else ", ".join(unscored)
            notes.append(f"No metrics.json, so lmms-eval's own aggregation has not run yet: {names}.")
        unread = [
            self._name(arm)
            for arm in members
            if mostly_unread(int(self.answered[arm.id]["parsed"].isna().sum()), len(self.answered[arm.id]))
        ]
        if unread:
            notes.append(f"MOSTLY UNREAD: {', '.join(unread)}: more than half of the answers give no letter.")
        notes += [*self._stock(members), *self._by_name(members), *self._of_other_data(members)]
        return [*notes, *_fidelity(members)]

    def _stock(self, members: list[StoredArm]) -> list[str]:
        """Where lmms-eval's own reading of the answers gives another accuracy."""
        differences, lots = [], []
        for arm in members:
            rows = self.compared[arm.id]
            if without := int(rows["stock_error"].notna().sum()):
                lots.append(f"{self._name(arm)} {without}")
            known = rows["stock_correct"].notna()
            stock, ours = (rows.loc[known, name].astype(bool) for name in ("stock_correct", "correct"))
            if differing := int((stock != ours).sum()):
                differences.append(
                    f"{self._name(arm)} {differing} of {len(stock)} ({100 * stock.mean():.1f} % instead of "
                    f"{100 * ours.mean():.1f} %)"
                )
        notes = []
        if differences:
            notes.append(
                f"Read by lmms-eval's own function, answers score otherwise: {'; '.join(differences)}."
            )
        if lots:
            notes.append(
                f"Answers that lmms-eval's own function scores by chance, or fails on: {'; '.join(lots)}."
            )
        return notes

    def _by_name(self, members: list[StoredArm]) -> list[str]:
        """A warning where videos are known by the names of their files alone."""
        old = [arm for arm in members if arm.by_name and len(self.stored[arm.id])]
        if not old:
            return []
        names = "all arms" if len(old) == len(members) else ", ".join(self._name(arm) for arm in old)
        return [
            "Stored by an earlier version, which knows a video by the name of its file alone, so that two of one name "
            f"in different folders count as one: {names}."
        ]

    def _of_other_data(self, members: list[StoredArm]) -> list[str]:
        """A warning where a question or its video was not the same for all arms that answered it."""
        rows = pd.concat([self.stored[arm.id][["failed", "of"]] for arm in members])
        rows = rows[~rows["failed"] & rows["of"].notna()]
        kinds = rows.groupby("id")["of"].nunique()
        changed = list(kinds.index[kinds > 1])
        if not changed:
            return []
        named = ", ".join(map(printable, changed[:3]))
        named += f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return [
            f"ROWS DIFFER in what was asked: the question or the video of {named} changed between the arms; start "
            "the same run again to ask it anew."
        ]

    def _place(self, arm: StoredArm) -> tuple:
        """Order of printing: retention down; in a block references, controls, methods, the proposed one last."""
        rank: float = 2
        if arm.reference:
            rank = REFERENCES.index(arm.method) - len(REFERENCES)
        elif arm.method.startswith(CONTROLS):
            first = next(name for name in CONTROLS if arm.method.startswith(name))
            rank = CONTROLS.index(first) / len(CONTROLS)
        elif arm.proposed:
            rank = 3
        values = [order(value) for value in self.swept[arm.id].values() if not isinstance(value, bool)]
        return -arm.retention, rank, arm.method, values, not arm.bare, self.labels[arm.id], arm.id

    def _name(self, arm: StoredArm) -> str:
        label = self.labels[arm.id]
        return label if arm.reference else f"{label} at {100 * arm.retention:.4g} %"


def _fidelity(members: list[StoredArm]) -> list[str]:
    """Why a method is another variant than the one whose numbers were published."""
    variants = {arm.method: arm.fidelity for arm in members if arm.fidelity.get("word") == "variant"}
    return [
        f"Fidelity of {method}, a variant of what was published: {fidelity.get('reason') or 'it does not say how'}"
        for method, fidelity in variants.items()
    ]


def _fault(arm: StoredArm, rows: pd.DataFrame) -> str:
    """What makes a row no result of its method; see ``TableRow.fault``. Where nothing is stored, nothing is said."""
    if not len(rows):
        return ""
    if rows["answer"].notna().all() and not any(text.strip() for text in rows["answer"]):
        return EMPTY
    if arm.reference or arm.retention == 1 or rows["retention_tokens"].isna().any():
        return ""
    dropped = any((rows[name] < 1).any() for name in ("retention_tokens", "retention_compute", "kv_kept"))
    if dropped or any((counts or {}).get(name) for counts in rows["reasons"] for name in MERGING):
        return ""
    return INACTIVE


def _all_tokens(rows: list[TableRow]) -> TableRow | None:
    return next((row for row in rows if row.method == "none"), None)


def _ranked(rows: list[TableRow]) -> list[TableRow]:
    """Marks the best and the second of each block with at least two rows that compete; equals share a place."""
    accuracies: dict[float, set[float]] = {}
    counted = Counter(row.retention for row in rows if row.competes)
    for row in rows:
        if row.competes and counted[row.retention] > 1:
            accuracies.setdefault(row.retention, set()).add(round(row.overall, 1))
    marked = []
    for row in rows:
        places = sorted(accuracies.get(row.retention, ()), reverse=True)
        place = places.index(round(row.overall, 1)) if row.competes and places else None
        marked.append(replace(row, best=place == 0, second=place == 1))
    return marked


def _warnings(rows: list[TableRow], kind: str) -> list[str]:
    """Budgets that were missed, and blocks whose rows agree in their budget but not in their compute."""
    notes = []
    if any(row.missed for row in rows):
        notes.append(
            f"A retention marked ! is off its budget of kind {kind} by more than {100 * TOLERANCE:.0f} % "
            "(relative, mean over the questions)."
        )
    notes += _unmatched(rows, kind)
    over = [f"{row.label} at {100 * row.retention:.4g} %" for row in rows if row.over_budget]
    if over:
        notes.append(f"Over its budget, so out of the contest for the best: {', '.join(over)}.")
    for fault, meaning in FAULTS.items():
        names = [f"{row.label} at {100 * row.retention:.4g} %" for row in rows if row.fault == fault]
        if names:
            notes.append(
                f"{fault.upper()}, so out of the contest for the best: {', '.join(names)}: {meaning}."
            )
    if any(row.values["n_unparsed"] and not math.isnan(row.overall) for row in rows):
        notes.append("Answers that could not be parsed count as wrong; column unparsed says how many.")
    return notes


def _unmatched(rows: list[TableRow], kind: str) -> list[str]:
    """A warning for every block in which the compute of two rows differs by more than the tolerance."""
    notes = []
    for retention, block in _computing(rows).items():
        least = min(block, key=lambda row: row.retention_compute)
        most = max(block, key=lambda row: row.retention_compute)
        if most.retention_compute <= (1 + TOLERANCE) * least.retention_compute:
            continue
        usual = median_compute(block)
        off = [row for row in block if abs(row.retention_compute / usual - 1) > TOLERANCE] or [least, most]
        spent = ", ".join(f"{row.label} {row.retention_compute / usual:.2f} times" for row in off)
        notes.append(
            f"NOT MATCHED in compute at {100 * retention:.4g} % ({kind}): rows differ by up to "
            f"{100 * (most.retention_compute / least.retention_compute - 1):.0f} % ({most.label} against "
            f"{least.label}); against the block's median spend {spent}. Compare with care."
        )
    return notes


def _computing(rows: list[TableRow]) -> dict[float, list[TableRow]]:
    """Rows by block that have video tokens to compute."""
    blocks: dict[float, list[TableRow]] = {}
    for row in rows:
        if row.method != "no_video" and row.retention_compute > 0:
            blocks.setdefault(row.retention, []).append(row)
    return blocks


def _macro(categories: dict[str, float]) -> float:
    return sum(categories.values()) / len(categories) if categories else NAN


def _benchmark_line(arm: StoredArm, name: str) -> str:
    benchmark = arm.record["benchmark"]
    chance = benchmark.get("chance")
    line = f"Benchmark {name}: {one_line(benchmark.get('note') or 'no note stored')}"
    return line if chance is None else f"{line.rstrip('.')}. Chance is {chance:.1f} %."


def _protocol_line(arm: StoredArm) -> str:
    """In whose protocol the numbers were measured."""
    source = arm.protocol.get("source")
    return f"Protocol: {arm.protocol_name}{f' ({one_line(source)})' if source else ''}."


def _prompt_line(members: list[StoredArm]) -> list[str]:
    """Which of lmms-eval's prompts was asked; nothing for runs that do not say."""
    prompt = members[0].record["benchmark"].get("prompt")
    return [f"Prompt: the one that the task calls {prompt!r} (benchmark.prompt)."] if prompt else []
