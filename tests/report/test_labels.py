"""What arms differ in beside method, parameters and budget is said: by tables of their own, or in their labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.synthetic_run import QUESTIONS, answers, failed, make, write_arm
from helpers.written import csv_rows
from stsimdiff.report.comparison import ArmGroup
from stsimdiff.report.publish import publish
from stsimdiff.report.render import shown_pairs
from stsimdiff.report.rows import read
from stsimdiff.report.series import threshold_maps

MODEL = {"name": "embedded", "path": "/models/embedded", "checkpoint": "aaa111", "frames": 8}
BENCHMARK = {"name": "clips", "task": "clips", "revision": "0123456789ab", "note": "x", "decoder": "pyav"}


def two(folder: Path, **changed: dict) -> None:
    """The same two arms with a record and with another."""
    for record in ({name: MODEL if name == "model" else BENCHMARK for name in changed}, changed):
        write_arm(folder, "none", 1.0, answers(0.9, 1.0), **record)
        write_arm(folder, "fastv", 0.3, answers(0.7, 0.3), **record)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"revision": "fedcba987654"}, ["clips (data 0123456789ab)", "clips (data fedcba987654)"]),
        ({"prompt": "llava_vid"}, ["clips (prompt unknown)", "clips (prompt llava_vid)"]),
        ({"decoder": "decord"}, ["clips (decoder exact)", "clips (decoder decord)"]),
        ({"task": "clips_2"}, ["clips (task clips)", "clips (task clips_2)"]),
        ({"code": "task 2"}, ["clips (task's code unknown)", "clips (task's code task 2)"]),
    ],
)
def test_rows_of_other_questions_stand_in_a_table_of_their_own(
    tmp_path: Path, change: dict, named: list[str]
) -> None:
    two(tmp_path, benchmark=BENCHMARK | change)
    table = make(tmp_path, None)
    assert [section.benchmark for section in table.sections] == named
    assert [[row.label for row in section.rows] for section in table.sections] == [["none", "fastv"]] * 2
    assert [len(section.pairs) for section in table.sections] == [1, 1]
    assert [line["benchmark"] for line in csv_rows(tmp_path / "table.csv")] == [named[0]] * 2 + [named[1]] * 2
    assert named[0].partition("(")[2] in (tmp_path / "table.tex").read_text().replace("\\", "")


def test_decoders_that_give_the_same_frames_are_one_table(tmp_path: Path) -> None:
    two(tmp_path, benchmark=BENCHMARK | {"decoder": "torchcodec", "limit": 5, "note": "another note"})
    (section,) = make(tmp_path, None).sections
    assert len(section.rows) == 4


def test_checkpoints_are_named_where_a_model_has_two(tmp_path: Path) -> None:
    two(tmp_path, model=MODEL | {"checkpoint": "bbb222"})
    sections = make(tmp_path, None).sections
    assert [s.model for s in sections] == ["embedded (checkpoint aaa111)", "embedded (checkpoint bbb222)"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pooling": "average"}, "model.pooling=average"),
        ({"pooling": "average", "dtype": "bfloat16"}, "model.pooling=average model.dtype=bfloat16"),
    ],
)
def test_swept_settings_are_in_every_label_and_each_row_has_its_own_reference(
    tmp_path: Path, change: dict, said: str
) -> None:
    two(tmp_path, model=MODEL | change)
    write_arm(tmp_path, "fastv", 0.1, answers(0.5, 0.1), model=MODEL | change | {"device": "cuda:3"})
    table = make(tmp_path, None)
    (section,) = table.sections
    assert [row.label for row in section.rows] == [
        *("none", f"none {said}", "fastv", f"fastv {said}", f"fastv {said}"),
    ]
    found = {(pair.method, pair.against, pair.retention) for pair in section.pairs}
    assert {(f"fastv {said}", f"none {said}", 0.3), ("fastv", "none", 0.3)} <= found
    assert ("fastv", f"none {said}", 0.3) not in found and ("fastv", f"none {said}", 0.1) not in found
    assert f"; fastv {said} is 38.3 points worse than all tokens (86.7)" in section.verdicts[-1]
    assert publish(tmp_path, None).unmade == []
    for name in ("table.md", "table.csv", "pairs.csv", "report.html"):
        assert f"fastv {said}" in (tmp_path / name).read_text(), name
    assert f"fastv {said}".replace(" ", "") in "".join((tmp_path / "table.tex").read_text().split()).replace(
        "\\", ""
    )


def test_two_versions_of_a_methods_code_are_told_in_its_label_alone(tmp_path: Path) -> None:
    write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0), code="99990000")
    write_arm(tmp_path, "fastv", 0.3, answers(0.7, 0.3), code="12ab00000000")
    write_arm(tmp_path, "fastv", 0.3, answers(0.6, 0.3), code="12ac00000000")
    (section,) = make(tmp_path, None).sections
    assert [row.label for row in section.rows] == ["none", "fastv code 12ab", "fastv code 12ac"]


def test_settings_of_any_group_and_depth_are_told(tmp_path: Path) -> None:
    for tokens, penalty in ((16, 1.0), (512, 1.2)):
        more = {
            "benchmark": BENCHMARK | {"max_new_tokens": tokens},
            "generation": {"beams": 1, "repetition_penalty": penalty},
        }
        write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0), **more)
    (section,) = make(tmp_path, None).sections
    assert [row.label for row in section.rows] == [
        "none benchmark.max_new_tokens=16 generation.repetition_penalty=1",
        "none benchmark.max_new_tokens=512 generation.repetition_penalty=1.2",
    ]


def test_what_nothing_in_the_record_tells_apart_has_its_id(tmp_path: Path) -> None:
    for _ in range(2):
        write_arm(tmp_path, "fastv", 0.3, answers(0.7, 0.3))
    (section,) = make(tmp_path, None).sections
    assert [row.label for row in section.rows] == ["fastv #000000000000", "fastv #000000000001"]


def test_a_default_that_changed_is_told(tmp_path: Path) -> None:
    for layer in (2, 3):
        settings = {"_target_": "x.FastV", "layer": layer}
        write_arm(tmp_path, "fastv", 0.3, answers(0.7, 0.3), compressor=settings)
    (section,) = make(tmp_path, None).sections
    assert [row.label for row in section.rows] == ["fastv layer=2", "fastv layer=3"]


def test_maps_and_pairs_do_not_mix_settings(tmp_path: Path) -> None:
    for pooling in ("max", "average"):
        for tau in (0.6, 0.8):
            settings = {"_target_": "x.STSimDiff", "tau_sim": tau, "tau_diff": 0.2}
            model = MODEL | {"pooling": pooling}
            label = "st_simdiff" if tau == 0.8 else f"st_simdiff tau_sim={tau}"
            write_arm(
                tmp_path,
                "st_simdiff",
                0.3,
                answers(tau, 0.3, seed=pooling),
                label=label,
                compressor=settings,
                model=model,
            )
    (section,) = make(tmp_path, None).sections
    maps = threshold_maps(section, read(tmp_path).arms)
    assert [one.title for one in maps] == [
        "st_simdiff model.pooling=average at 30 %",
        "st_simdiff model.pooling=max at 30 %",
    ]
    rows = {row.label: row.overall for row in section.rows}
    for one in maps:
        pooling = one.title.split("=")[1].split()[0]
        assert one.accuracy.tolist() == [
            [
                rows[f"st_simdiff tau_sim=0.6 model.pooling={pooling}"],
                rows[f"st_simdiff tau_sim=0.8 model.pooling={pooling}"],
            ]
        ]
    anchors = {pair.method for pair in shown_pairs(section)}
    assert {f"st_simdiff tau_sim=0.8 model.pooling={pooling}" for pooling in ("max", "average")} <= anchors


def test_failures_of_another_kind_of_budget_that_narrow_a_table_are_named_in_it(tmp_path: Path) -> None:
    write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0))
    write_arm(tmp_path, "fastv", 0.3, answers(0.7, 0.3))
    broken = [failed(QUESTIONS[i]) if i < 3 else row for i, row in enumerate(answers(0.7, 0.3))]
    write_arm(tmp_path, "visionzip", 0.3, broken, kind="compute")
    write_arm(tmp_path, "random", 0.3, answers(0.5, 0.3)[:100], kind="compute")
    tokens, compute = make(tmp_path, None).sections
    assert {row.n for row in [*tokens.rows, *compute.rows]} == {97}
    said, own = "\n".join(tokens.notes), "\n".join(compute.notes)
    elsewhere = "(compute, in the table of that kind of budget)"
    assert f"FAILED samples, which are no answers: visionzip at 30 % {elsewhere} ValueError x3." in said
    assert f"NOT FINISHED: random at 30 % {elsewhere} has stored 100 of {len(QUESTIONS)} questions." in said
    assert "visionzip at 30 % ValueError x3." in own and elsewhere not in own


def test_arms_of_an_earlier_version_are_named(tmp_path: Path) -> None:
    write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0), format=2)
    write_arm(tmp_path, "fastv", 0.3, answers(0.7, 0.3))
    notes = "\n".join(make(tmp_path, None).sections[0].notes)
    assert "knows a video by the name of its file alone" in notes and "count as one: fastv at 30 %." in notes


def test_a_run_of_this_version_has_no_such_note(tmp_path: Path) -> None:
    write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0), format=2)
    assert "earlier version" not in "\n".join(make(tmp_path, None).sections[0].notes)


def test_where_lmms_evals_own_reading_differs_is_said(tmp_path: Path) -> None:
    rows = [
        row | {"stock_parsed": row["parsed"], "stock_correct": row["correct"]} for row in answers(0.7, 0.3)
    ]
    write_arm(tmp_path, "random", 0.3, [dict(row) for row in rows])
    right = sum(row["correct"] for row in rows)
    for row in [row for row in rows if row["correct"]][:5]:
        row["stock_correct"] = False
    write_arm(tmp_path, "fastv", 0.3, rows)
    notes = "\n".join(make(tmp_path, None).sections[0].notes)
    n = len(QUESTIONS)
    assert (
        f"Read by lmms-eval's own function, answers score otherwise: fastv at 30 % 5 of {n} "
        f"({100 * (right - 5) / n:.1f} % instead of {100 * right / n:.1f} %)."
    ) in notes


def test_all_tokens_are_those_of_the_same_settings_where_there_are_such(tmp_path: Path) -> None:
    for dtype, chance in (("float16", 0.5), ("float32", 0.95)):
        write_arm(tmp_path, "none", 1.0, answers(chance, 1.0), model=MODEL | {"dtype": dtype})
    for dtype in ("float32", "bfloat16"):
        write_arm(tmp_path, "fastv", 0.3, answers(0.7, 0.3), model=MODEL | {"dtype": dtype})
    stored = read(tmp_path)
    group = ArmGroup(stored.arms, stored.samples, "embedded", "clips")
    full = {
        arm.record["model"]["dtype"]: group.everything(arm) for arm in stored.arms if arm.method == "fastv"
    }
    assert {dtype: arm.record["model"]["dtype"] for dtype, arm in full.items()} == {
        "float32": "float32",
        "bfloat16": "float16",  # none has its settings: the first that there is
    }


def test_questions_that_changed_between_arms_are_named(tmp_path: Path) -> None:
    stored = [row | {"of": f"digest of {row['id']}"} for row in answers(0.7, 0.3)]
    first, second = QUESTIONS[3][2 - 1], QUESTIONS[5][2 - 1]
    write_arm(tmp_path, "random", 0.3, stored)
    write_arm(tmp_path, "fastv", 0.3, stored)
    (section,) = make(tmp_path, None).sections
    assert "ROWS DIFFER" not in " ".join(section.notes)
    write_arm(
        tmp_path,
        "visionzip",
        0.3,
        [row | {"of": "another"} if row["id"] in (first, second) else row for row in stored],
    )
    (section,) = make(tmp_path, None).sections
    assert f"the question or the video of {first}, {second} changed between the arms" in " ".join(
        section.notes
    )
