"""What is plotted: the Pareto front, retention by layer and the grids of thresholds, against numbers made by hand."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.layout_engine import ConstrainedLayoutEngine

from helpers.synthetic_run import answers, write_arm
from stsimdiff.report import figures, palette
from stsimdiff.report.page import report_page
from stsimdiff.report.publish import publish
from stsimdiff.report.rows import read
from stsimdiff.report.series import by_layer, over_frames, pareto, sweeps, threshold_maps
from stsimdiff.report.table import build
from stsimdiff.report.venue import VENUES

NAN = float("nan")


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [(50, 90), (30, 80), (40, 80), (30, 70), (100, 89), (10, NAN), (NAN, 99), (60, 95)]
    assert pareto(points) == [(30, 80), (50, 90), (60, 95)]
    assert pareto([]) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A grid of thresholds with a hole, at two retentions, of one method with another parameter too."""
    folder = tmp_path_factory.mktemp("results") / "taus"
    for similar in (0.7, 0.8):
        for different in (0.1, 0.2, "p95"):
            for retention in (0.3, 0.5):
                if (similar, different, retention) == (0.8, 0.1, 0.5):
                    continue
                settings = {"_target_": "x.STSimDiff", "tau_sim": similar, "tau_diff": different, "layer": 1}
                chance = 0.5 + retention / 2 + similar / 10
                stored = answers(chance, retention, seed=different)
                label = f"st_simdiff tau_sim={similar} tau_diff={different}"
                write_arm(folder, "st_simdiff", retention, stored, label=label, compressor=settings)
    other = {"_target_": "x.STSimDiff", "tau_sim": 0.8, "tau_diff": 0.2, "layer": 2}
    write_arm(folder, "st_simdiff", 0.3, answers(0.9, 0.3), label="st_simdiff layer=2", compressor=other)
    write_arm(folder, "mine", 0.3, answers(0.9, 0.3))
    write_arm(folder, "none", 1.0, None)
    return folder


def test_maps_hold_every_arm_of_one_setting(run: Path) -> None:
    stored = read(run)
    (section,) = build(stored).sections
    maps = threshold_maps(section, stored.arms)
    assert [one.title for one in maps] == ["st_simdiff layer=1 at 50 %", "st_simdiff layer=1 at 30 %"]
    accuracy = {(row.label, row.retention): row.overall for row in section.rows}
    for one, retention in zip(maps, (0.5, 0.3), strict=True):
        assert (one.similar, one.different) == (["0.7", "0.8"], ["0.1", "0.2", "p95"])
        for (y, x), value in np.ndenumerate(one.accuracy):
            label = f"st_simdiff tau_sim={one.similar[x]} tau_diff={one.different[y]} layer=1"
            assert value == pytest.approx(accuracy.get((label, retention), NAN), nan_ok=True)
    assert np.isnan(maps[0].accuracy[0, 1]) and np.isnan(maps[0].accuracy).sum() == 1


def test_sweeps_hold_rows_that_differ_in_one_parameter_alone(run: Path) -> None:
    (section,) = build(read(run)).sections
    found = {sweep.name: sweep for sweep in sweeps(section)}
    assert set(found) == {"tau_sim", "tau_diff", "layer"} and {sweep.method for sweep in found.values()} == {
        "st_simdiff"
    }
    assert found["tau_sim"].values == [0.7, 0.8] and found["tau_sim"].numbers
    assert found["tau_diff"].values == [0.1, 0.2, "p95"] and not found["tau_diff"].numbers
    # Of the six pairs over tau_sim one lacks an arm; layer 2 was asked at one setting of the thresholds.
    assert len(found["tau_sim"].lines) == 5 and len(found["tau_diff"].lines) == 4
    assert list(found["layer"].lines) == ["tau_sim=0.8 tau_diff=0.2 at 30 %"]
    line = found["tau_diff"].lines["tau_sim=0.8 layer=1 at 50 %"]
    accuracy = {(row.label, row.retention): row.overall for row in section.rows}
    assert {value: row.overall for value, row in line.items()} == {
        value: accuracy[f"st_simdiff tau_sim=0.8 tau_diff={value} layer=1", 0.5] for value in (0.2, "p95")
    }


def test_numbers_are_lines_and_words_bars_over_all_tokens(run: Path) -> None:
    (section,) = build(read(run)).sections
    with rc_context(VENUES["plain"].settings()):
        panels = {axes.get_xlabel(): axes for axes in figures.swept(section).axes}
    assert set(panels) == {"τ_sim", "τ_diff", "layer"}
    assert not panels["τ_sim"].patches and len(panels["τ_diff"].patches) == 11
    assert [text.get_text() for text in panels["τ_diff"].get_xticklabels()] == ["0.1", "0.2", "p95"]
    heights = sorted(bar.get_height() for bar in panels["τ_diff"].patches)
    shown = sorted(row.overall for row in section.rows if "layer=1" in row.label)
    assert heights == pytest.approx(shown)


def test_two_swept_parameters_are_a_map_by_their_names(tmp_path: Path) -> None:
    for layer in (1, 2):
        for reduction in ("mean", "max"):
            settings = {
                "_target_": "x.STSimDiff",
                "layer": layer,
                "reduction": reduction,
                "tau_sim": 0.8,
                "tau_diff": 0.2,
            }
            write_arm(
                tmp_path,
                "st_simdiff",
                0.3,
                answers(0.5 + layer / 10, 0.3, seed=reduction),
                compressor=settings,
            )
    stored = read(tmp_path)
    (section,) = build(stored).sections
    (found,) = threshold_maps(section, stored.arms)
    assert (found.names, found.title) == (("layer", "reduction"), "st_simdiff at 30 %")
    assert (found.similar, found.different) == (["1", "2"], ["max", "mean"])
    accuracy = {(row.swept["reduction"], row.swept["layer"]): row.overall for row in section.rows}
    assert found.accuracy.tolist() == [
        [accuracy[word, layer] for layer in (1, 2)] for word in ("max", "mean")
    ]
    page = report_page(tmp_path, build(stored), stored, [])
    assert json.loads(page.partition('id="data">')[2].partition("</script>")[0])["plots"][0]["maps"][0][
        "names"
    ] == [
        "layer",
        "reduction",
    ]


def test_layers_are_means_over_the_answers(run: Path) -> None:
    stored = read(run)
    found = by_layer(stored.samples)
    for arm, rows in stored.samples.groupby("arm"):
        shares = [np.array(row.tokens_per_layer) / row.video_tokens for row in rows.itertuples()]
        assert found[arm] == pytest.approx(np.mean(shares, axis=0))


def test_all_figures_of_a_sweep_are_drawn_also_where_rows_are_empty(run: Path) -> None:
    assert publish(run, None).unmade == []
    drawn = sorted(path.name for path in (run / "figures").iterdir())
    assert drawn == sorted(f"{name}.{kind}" for name in figures.NAMES[:-2] for kind in figures.FORMATS)
    assert "thresholds.svg" in (run / "report.html").read_text()


def test_a_figure_is_laid_out_once_for_all_its_formats(run: Path, monkeypatch) -> None:
    laid_out: list[object] = []
    execute = ConstrainedLayoutEngine.execute
    monkeypatch.setattr(
        ConstrainedLayoutEngine,
        "execute",
        lambda self, figure: (laid_out.append(figure), execute(self, figure)),
    )
    stored = read(run)
    drawn = [draw() for _, draw in figures.figures(build(stored), stored)]
    drawn = [files for files in drawn if files]
    assert all(set(files) == {"pdf", "svg", "png"} for files in drawn)
    assert len(laid_out) == len(drawn) == 6


def test_two_sections_have_figures_of_their_own(tmp_path: Path) -> None:
    write_arm(tmp_path, "fastv", 0.5, answers(0.6, 0.5))
    write_arm(tmp_path, "fastv", 0.5, answers(0.6, 0.5), kind="compute")
    assert publish(tmp_path, None).unmade == []
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"accuracy_flops_embedded_clips_tokens", "accuracy_flops_embedded_clips_compute"} <= names
    assert len(names) == 8


def test_a_run_without_answers_has_a_page_and_no_figures(tmp_path: Path) -> None:
    write_arm(tmp_path, "none", 1.0, None)
    published = publish(tmp_path, None)
    assert published.unmade == [] and published.page.is_file()
    assert not (tmp_path / "figures").exists()


def test_looks_are_the_same_in_every_run() -> None:
    alone, among = palette.styles(["mine"]), palette.styles(["none", "mine", "st_simdiff", "zeta"])
    assert alone["mine"] == among["mine"] != among["zeta"]
    looks = [(style.colour, style.marker) for style in (*palette.KNOWN.values(), *palette.OTHERS)]
    assert len(set(looks)) == len(looks)


def test_no_two_methods_share_colour_and_marker() -> None:
    methods = [*palette.KNOWN, *(f"mine{number:03d}" for number in range(300))]
    found = palette.styles(methods)
    assert len({(style.colour, style.marker) for style in found.values()}) == len(methods)
    assert len({(style.colour, style.symbol) for style in found.values()}) == len(methods)
    assert not {style.marker for name, style in found.items() if name not in palette.KNOWN} & {
        style.marker for style in palette.KNOWN.values()
    }


def test_no_two_labels_of_a_run_look_the_same() -> None:
    rows = [
        SimpleNamespace(method=method, label=f"{method} x={number}", proposed=method == "st_simdiff")
        for method in ("st_simdiff", "none", "mine", "yours")
        for number in range(60)
    ]
    found = palette.looks(rows)
    assert len(found) == len(rows)
    # A label with one retention is a point without a line: colour and marker alone must tell.
    for told in ("colour", "marker"), ("colour", "symbol"):
        assert len({tuple(getattr(look, name) for name in told) for look in found.values()}) == len(rows)
    base = palette.KNOWN["st_simdiff"]
    first = found["st_simdiff", "st_simdiff x=0"]
    assert (first.colour, first.marker, first.line) == (base.colour, base.marker, "-")


@pytest.mark.parametrize("style", VENUES)
def test_a_legend_names_every_label_and_the_page_draws_them_alike(tmp_path: Path, style: str) -> None:
    for number in range(45):
        label = f"mine a_parameter_with_a_long_name={number} and_another={number}"
        write_arm(tmp_path, "mine", 0.3, answers(0.5, 0.3, seed=number), label=label)
    stored = read(tmp_path)
    table = build(stored)
    styles = palette.looks(table.sections[0].rows)
    with rc_context(VENUES[style].settings()):
        figure = figures.accuracy(table.sections[0], ("flops",), styles)
    named = [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]
    assert named == [*(row.label for row in table.sections[0].rows), "Pareto front"]
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.y0 >= 0 and box.y1 <= figure.bbox.height and box.x1 <= figure.bbox.width
    assert figure.axes[0].get_window_extent().width > 0.75 * figure.bbox.width
    assert figure.axes[0].get_window_extent().height > 120
    drawn = {line.get_color() for line in figure.axes[0].get_lines() if line.get_marker() == "p"}
    assert len(drawn) == 45
    page = report_page(tmp_path, table, stored, [])
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    shown = {row["label"]: row["look"] for row in data["plots"][0]["rows"]}
    assert shown == {label: look.plotly() for (_, label), look in styles.items()}


@pytest.mark.parametrize("style", VENUES)
def test_nothing_lies_over_another_thing_or_is_cut(run: Path, style: str) -> None:
    stored = read(run)
    (section,) = build(stored).sections
    styles = palette.looks(section.rows)
    with rc_context(VENUES[style].settings()):
        drawn = [
            figures.accuracy(section, ("tokens", "compute"), styles),
            figures.retention_by_layer(section, by_layer(stored.samples), styles),
            figures.thresholds(section, stored),
            figures.swept(section),
        ]
        for figure in drawn:
            figure.draw_without_rendering()
            assert figure.get_suptitle() == ""
            boxes = [axes.get_tightbbox() for axes in figure.axes]
            boxes += [legend.get_window_extent() for legend in figure.legends]
            for i, box in enumerate(boxes):
                assert min(box.x0, box.y0) >= -1 and box.x1 <= figure.bbox.width + 1
                assert box.y1 <= figure.bbox.height + 1
                assert not any(box.padded(-2).overlaps(other) for other in boxes[:i])


def test_a_dollar_is_drawn_as_one(tmp_path: Path) -> None:
    write_arm(tmp_path, "mine", 0.3, answers(0.5, 0.3), label="mine $x^2$ $\\frac{")
    stored = read(tmp_path)
    for name, draw in figures.figures(build(stored), stored):
        assert draw() or name in ("thresholds", "swept", "breakdown", "moments", "frames")
    assert publish(tmp_path, None).unmade == []


def test_sections_whose_names_differ_in_signs_alone_have_figures_of_their_own(tmp_path: Path) -> None:
    for name in ("a b", "a_b", "a-b"):
        write_arm(tmp_path, "fastv", 0.5, answers(0.6, 0.5), benchmark={"name": name})
    publish(tmp_path, None)
    names = {path.stem for path in (tmp_path / "figures").iterdir() if path.stem.startswith("accuracy_flops")}
    assert len(names) == 3


def test_one_figure_holds_all_numbers_of_frames(tmp_path: Path) -> None:
    for frames in (16, 4, 8):
        model = {"name": "embedded", "path": "/m", "frames": frames}
        write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0, seed=frames), model=model)
        for kept in (0.5, 0.3):
            write_arm(tmp_path, "st_simdiff", kept, answers(0.6, kept, seed=frames), model=model)
    alone = {"name": "embedded", "path": "/m", "frames": 8, "sampling": "fps", "fps": 1.0}
    write_arm(tmp_path, "none", 1.0, answers(0.9, 1.0), model=alone)
    write_arm(
        tmp_path, "fastv", 0.3, answers(0.9, 0.3), model={"name": "embedded", "path": "/m", "frames": 4}
    )
    stored = read(tmp_path)
    table = build(stored)
    (found,) = over_frames(table.sections, stored.arms)
    assert found.values == [4, 8, 16] and found.numbers
    assert set(found.lines) == {"none", "st_simdiff at 50 %", "st_simdiff at 30 %"}
    frames = {arm.id: arm.record["model"]["frames"] for arm in stored.arms}
    for by in found.lines.values():
        assert list(by) != [] and all(frames[row.arm] == value for value, row in by.items()) and len(by) == 3
    styles = palette.looks(row for section in table.sections for row in section.rows)
    with rc_context(VENUES["cvpr"].settings()):
        (axes,) = figures.by_frames([found], styles).axes
        # In the methods' own colours and markers; the budgets of one method differ in the line.
        lines = {line.get_label(): line for line in axes.figure.legends[0].get_lines()}
        ours = [lines["st_simdiff at 50 %"], lines["st_simdiff at 30 %"]]
        assert {line.get_color() for line in ours} == {palette.STAR["st_simdiff"].colour}
        assert {line.get_marker() for line in ours} == {"*"} and ours[0].get_linestyle() != ours[
            1
        ].get_linestyle()
        assert lines["none"].get_color() == palette.ENDS["none"].colour
        assert axes.get_xlabel() == "frames" and axes.get_title() == ""
        drawn = {tuple(line.get_xdata()): 0 for line in axes.lines if len(line.get_xdata()) == 3}
        assert list(drawn) == [(4, 8, 16)]
        heights = sorted(y for line in axes.lines if line.get_linestyle() != "None" for y in line.get_ydata())
        assert heights == pytest.approx(
            sorted(row.overall for by in found.lines.values() for row in by.values())
        )
        assert over_frames(table.sections[:1], stored.arms) == [] and figures.by_frames([], styles) is None
    drawn = dict(figures.figures(table, stored))
    assert set(drawn["frames"]()) == {"pdf", "svg", "png"}
    # It is an earlier report's once the run has one number of frames.
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "frames.svg").write_text("of an earlier report")
    for folder in tmp_path.glob("*_*"):
        if folder.name not in ("none_00", "st_simdiff_01"):
            shutil.rmtree(folder)
    assert publish(tmp_path, None).unmade == [] and not (tmp_path / "figures" / "frames.svg").exists()
