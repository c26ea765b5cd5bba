"""What a run says of how it is shown: the method it is about, labels, and which version of an arm is the latest."""

from __future__ import annotations

import errno
import fcntl
import json
from pathlib import Path

import pytest

from helpers.synthetic_run import answers, make, write_arm
from helpers.written import csv_rows
from stsimdiff.commands import forget, report
from stsimdiff.errors import ConfigError, DataError
from stsimdiff.evaluate.passes import passes_of
from stsimdiff.evaluate.shown import ShownRecord, note_shown, read_shown
from stsimdiff.evaluate.store import ArmStore
from stsimdiff.launchers.base import configurations
from stsimdiff.report import palette, rows
from stsimdiff.report.page import report_page
from stsimdiff.report.statistics import holm

OWN = {"_target_": "my_module.Mine"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "dev"
    write_arm(folder, "none", 1.0, answers(0.93, 1.0))
    for retention in (0.5, 0.3):
        for method, chance in (("random", 0.45), ("fastv", 0.66), ("st_simdiff", 0.7)):
            write_arm(folder, method, retention, answers(chance, retention, seed=3))
        write_arm(folder, "Mine", retention, answers(0.72, retention, seed=4), compressor=OWN)
    return folder


def test_the_proposed_method_has_the_star_the_last_line_and_planned_comparisons_of_its_own(run: Path) -> None:
    before = make(run, None)
    every = {(p.retention, frozenset((p.method, p.against))): p.p_holm for p in before.sections[0].pairs}
    assert not any(pair.planned for pair in before.sections[0].pairs)
    note_shown(run, "my_module.Mine", {})
    table = make(run, None)
    section = table.sections[0]
    for block in (0.5, 0.3):
        assert [row.label for row in section.blocks()[block]] == ["random", "fastv", "st_simdiff", "Mine"]
    planned = [pair for pair in section.pairs if pair.planned]
    # Three rivals and all tokens, in two blocks.
    assert len(planned) == 8 and all("Mine" in (pair.method, pair.against) for pair in planned)
    raw = [max(pair.p_mcnemar, pair.p_cluster) for pair in planned]
    assert [pair.p_planned for pair in planned] == pytest.approx(holm(raw))
    assert all(pair.p_planned <= pair.p_holm for pair in planned)
    assert any(pair.p_planned < pair.p_holm for pair in planned)
    for pair in planned:
        assert (pair.verdict != "no significant difference") == (pair.p_planned < 0.05)
    # All pairs stay, with the correction over all of them.
    lines = csv_rows(run / "pairs.csv")
    assert len(lines) == len(every) == 2 * 6 + 8
    for line in lines:
        pair = frozenset((line["method"], line["against"]))
        assert float(line["p_holm"]) == pytest.approx(every[float(line["retention"]), pair])
        assert bool(line["p_planned"]) == ("Mine" in pair)
    text = (run / "table.md").read_text()
    shown = text.split("Differences in pairs")[1].split("- Interval")[0]
    assert shown.count("| Mine |") == 8 and "the 8 planned comparisons of proposed=my_module.Mine" in text
    assert "Planned comparisons of Mine: " in text
    looks = palette.looks(section.rows)
    assert looks["Mine", "Mine"].marker == "*" != looks["st_simdiff", "st_simdiff"].marker
    styles = palette.styles([*palette.KNOWN, "Mine", "Yours"], "Mine")
    assert len({(style.colour, style.marker) for style in styles.values()}) == len(styles)
    assert styles["Yours"] == palette.styles(["Mine", "Yours"])["Yours"]


def test_a_built_in_name_is_proposed_too_and_a_plan_without_answers_is_said(run: Path) -> None:
    note_shown(run, "fastv", {})
    assert [row.label for row in make(run, None).sections[0].blocks()[0.3]][-1] == "fastv"
    note_shown(run, "my_module.Other", {})
    make(run, None)
    assert (
        "No comparison was planned: proposed=my_module.Other has no answers" in (run / "table.md").read_text()
    )


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_takes_it_too(tmp_path: Path, monkeypatch, code: int) -> None:
    """As Lustre mounted without ``flock``, or NFS whose server has no lock service."""

    def refused(descriptor: int, kind: int) -> None:
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", refused)
    note_shown(tmp_path, "fastv", {"a": "ours"})
    note_shown(tmp_path, None, {"b": None})
    assert read_shown(tmp_path) == ShownRecord("fastv", {"a": "ours", "b": ""})


def test_a_variant_of_the_proposed_method_is_one_of_the_others(run: Path) -> None:
    # The order of a sweep puts the smaller value first; the plan is about the defaults wherever they stand.
    write_arm(run, "Mine", 0.3, answers(0.6, 0.3), label="Mine power=1", compressor={**OWN, "power": 1})
    (own,) = [arm for arm in rows.arms(run) if arm.bare and arm.method == "Mine" and arm.retention == 0.3]
    record = {**own.record, "compressor": {**OWN, "power": 2}}
    (own.folder / "arm.json").write_text(json.dumps(record))
    note_shown(run, "my_module.Mine", {})
    section = make(run, None).sections[0]
    planned = [{pair.method, pair.against} for pair in section.pairs if pair.planned]
    labels = {row.arm: row.label for row in section.rows}
    (variant,) = [row.label for row in section.rows if row.proposed and not row.bare]
    assert len(planned) == 9 and {labels[own.id], variant} in planned
    assert {variant, "random"} not in planned and {labels[own.id], "random"} in planned
    assert f"| {labels[own.id]} | {variant} |" in (run / "table.md").read_text()


def test_a_label_is_shown_in_every_place_and_decides_nothing(run: Path) -> None:
    ids = {arm.method: arm.id for arm in rows.arms(run) if arm.retention == 0.3}
    note_shown(run, None, {ids["Mine"]: "Ours, *best*"})
    table = make(run, None)
    assert [row.label for row in table.sections[0].blocks()[0.3]] == [
        "random", "Ours, *best*", "fastv", "st_simdiff",
    ]  # fmt: skip
    assert "| Ours, \\*best\\* |" in (run / "table.md").read_text()
    assert "Ours, *best*" in report_page(run, table, rows.read(run), [])
    # What another command does not say stays; an empty label takes it back.
    note_shown(run, None, {ids["Mine"]: None})
    assert read_shown(run).arms == {ids["Mine"]: "Ours, *best*"}
    note_shown(run, None, {ids["Mine"]: ""})
    assert "Ours" not in (make(run, None), (run / "table.md").read_text())[1]


def test_an_older_version_is_counted_shown_on_request_and_removed_on_request(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_arm(run, "Mine", 0.3, answers(0.6, 0.3), compressor=OWN, code="def")
    ids = {arm.folder: arm.id for arm in rows.arms(run)}
    # Nobody knows which of both is of the code that is here: both are shown.
    assert {"Mine code abc", "Mine code def"} <= {row.label for row in make(run, None).sections[0].rows}
    note_shown(run, None, {ids[folder]: None})
    table = make(run, None)
    assert [row.arm for row in table.sections[0].rows if row.method == "Mine" and row.retention == 0.3] == [
        ids[folder]
    ]
    (said,) = [note for note in table.notes if "Left out" in note]
    assert "Left out: 1 older version of arms" in said and "forget run=dev older" in said
    assert len(rows.read_samples(run, older=True)) - len(rows.read_samples(run)) == len(answers(0.6, 0.3))
    assert report.main([str(run), "--older"]) == 0
    assert "Mine code def" in capsys.readouterr().out
    monkeypatch.chdir(run.parent)
    (old,) = rows.older_arms(rows.arms(run))
    for number in (0, 1):  # any of the processes that may write it
        with (
            ArmStore(old.folder, dict(old.record), first=number),
            pytest.raises(DataError, match="is being written"),
        ):
            forget.main(["run=dev", f"results={run.parent}", "older"])
    assert forget.main(["run=dev", f"results={run.parent}", "older"]) == 0
    assert "dev: 1; the table" in capsys.readouterr().out
    assert folder.is_dir() and len(rows.arms(run)) == len(ids) - 1
    assert not [note for note in make(run, None).notes if "lder version" in note]


def test_going_back_to_earlier_code_shows_its_answers_again(run: Path) -> None:
    folder = write_arm(run, "Mine", 0.3, answers(0.6, 0.3), compressor=OWN, code="def")
    ids = {arm.folder: arm.id for arm in rows.arms(run)}
    first = next(arm.id for arm in rows.arms(run) if arm.method == "Mine" and arm.retention == 0.3)
    note_shown(run, None, {first: None, ids[folder]: None})
    assert [arm.id for arm in rows.older_arms(rows.arms(run))] == [first]
    note_shown(run, None, {first: None})
    assert [arm.id for arm in rows.older_arms(rows.arms(run))] == [ids[folder]]
    # Another parameter or budget is another arm, not an older version.
    write_arm(run, "Mine", 0.3, answers(0.6, 0.3), label="Mine power=2", compressor=OWN, code="def")
    assert len(rows.older_arms(rows.arms(run))) == 1


def test_forget_takes_a_run_and_what_of_it_alone(run: Path) -> None:
    for words in ([], ["run=dev"], ["older"], ["run=dev", "newer"], ["run=dev", "limit=3", "older"]):
        with pytest.raises(ConfigError, match="allowed: run=NAME older"):
            forget.main(words)


def test_a_damaged_file_is_refused(run: Path) -> None:
    for text in ("{", "[]", '{"proposed": 3, "arms": {}}', '{"proposed": "", "arms": {"a": 1}}'):
        (run / "shown.json").write_text(text)
        with pytest.raises(DataError, match=r"shown\.json"):
            rows.read(run)
    (run / "shown.json").unlink()
    assert read_shown(run) == ShownRecord()


def test_the_command_line_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from dataclasses import dataclass\nfrom stsimdiff.compressors.base import ScoreCompressor\n\n\n"
        "@dataclass(frozen=True)\nclass Ours(ScoreCompressor):\n    def score(self, tokens, layout):\n"
        "        return tokens.features.float().norm(dim=1)\n"
    )
    (tmp_path / "shown_module.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    line = "arms=['compressor=random,shown_module.Ours label=\"A B\"','compressor=fastv']"
    (one,) = passes_of(configurations(["logger=none", "proposed=shown_module.Ours", line]))
    assert one.settings.proposed == "shown_module.Ours"
    assert [(arm.method, arm.shown) for arm in one.arms.values()] == [
        ("random", "A B"), ("Ours", "A B"), ("fastv", None),
    ]  # fmt: skip
    # A label and a plan change no arm.
    (plain,) = passes_of(configurations(["logger=none", "arms=['compressor=random','compressor=fastv']"]))
    assert set(plain.arms) < set(one.arms)
    for word, said in (
        ("st_simdif", "proposed=st_simdif is unknown; .*did you mean st_simdiff"),
        ("shown_module.Theirs", "proposed=shown_module.Theirs cannot be imported"),
        ("none", "proposed=none has no retention of its own"),
    ):
        with pytest.raises(ConfigError, match=said):
            passes_of(configurations(["logger=none", f"proposed={word}"]))


def test_what_a_run_stores_is_what_it_was_told(tmp_path: Path) -> None:
    note_shown(tmp_path, "fastv", {"a": "first", "b": None})
    note_shown(tmp_path, None, {"a": None, "c": ""})
    assert json.loads((tmp_path / "shown.json").read_text()) == {
        "proposed": "fastv",
        "arms": {"b": "", "a": "first", "c": ""},
    }
    assert list(read_shown(tmp_path).arms) == ["b", "a", "c"]
