"""Our code against everything that was recorded of the authors' code, through the command and through ``replay``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.paths import GOLDEN, GOLDEN_RUNS, ROOT
from stsimdiff.commands.conformance import check, main
from stsimdiff.conformance import replay
from stsimdiff.conformance.cases import Case, Fields, find, read_fields
from stsimdiff.conformance.compare import compare
from stsimdiff.conformance.prompts import load_family
from stsimdiff.conformance.replays import replay_of
from stsimdiff.errors import ConfigError, DataError

SHARED = ROOT.parent / "shared" / "golden_e2e"
"""Larger cases, where the repository stands beside them."""
FOLDERS = sorted({place.name: place for root in (SHARED, GOLDEN_RUNS) for place in root.glob("*/")}.items())
RULE_ON_TIES = ("s1_keep_idx", "s1_sparsity_list", "merge_keep_index")
"""Recorded survivors from which later stages start where they are there."""


def run_cases() -> list:
    cases = [case for _, folder in FOLDERS if folder.is_dir() for case in find(folder)]
    return [pytest.param(case, id=case.name) for case in cases]


def stripped(case: Case, target: Path) -> Case:
    """The same case with no recorded output but the survivors that the rule on ties needs."""
    recorded = read_fields(case.recorded)
    left = {name: value for name, value in recorded.items() if name in RULE_ON_TIES}
    if case.run is None:
        # Some files have inputs in others, beside them.
        for other in case.path.parent.glob(
            re.sub(".* of |<case>", "*", recorded.meta.get("inputs", "")) or "-"
        ):
            shutil.copy(other, target)
        is_input = replay_of(case, recorded).is_input
        left |= {name: value for name, value in recorded.items() if is_input(name)}
        np.savez(target / case.path.name, **left)
        return Case(target / case.path.name)
    folder = target / case.path.name
    folder.mkdir()
    (folder / "checkpoint").symlink_to((case.path / "checkpoint").resolve())
    for name in ("input.npz", "meta.json"):
        shutil.copy(case.path / name, folder)
    if left:
        np.savez(folder / case.recorded.name, **left)
    return Case(folder, case.run)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in find(GOLDEN)])
def test_selections_agree_without_their_recorded_outputs(case, tmp_path) -> None:
    only_inputs = stripped(case, tmp_path)
    result = compare(case, read_fields(case.recorded), replay(only_inputs.path))
    assert result.differences == []
    assert len(result.compared) >= 3 or result.compared in (["official_error"], ["frame_attn"])


@pytest.fixture(scope="module")
def families() -> dict:
    return {}


@pytest.mark.parametrize("case", run_cases())
def test_runs_agree(case, families) -> None:
    result = check(case, families)
    assert result.differences == []
    assert {"logits_last", "gen_tokens", "gen_logits", "decode_kv_len"} <= set(result.compared)


@pytest.mark.parametrize(
    "run",
    [
        "baseline",
        "fastv_k3_r0.5",
        "framefusion_c0.4_s0.93_r0.01",
        "simdiff_c0.3_s0.8",
        "simdiff_c0.3_s0.8_stablesort",
    ],
)
def test_a_run_agrees_without_its_recorded_outputs(run, tmp_path) -> None:
    case = Case(GOLDEN_RUNS / "llava_video_grid9", run)
    only_inputs = stripped(case, tmp_path)
    assert compare(case, read_fields(case.recorded), replay(only_inputs.path, run)).differences == []
    (only_inputs.path / "meta.json").unlink()
    again = replay(only_inputs.path, run)
    assert compare(case, read_fields(case.recorded), again).differences == [], (
        "the run's name holds its settings"
    )


def test_ties_are_broken_as_by_the_official_code_with_a_stable_sort(tmp_path) -> None:
    case = Case(GOLDEN_RUNS / "llava_video_grid9", "simdiff_c0.3_s0.8_stablesort")
    only_inputs = stripped(case, tmp_path)
    only_inputs.recorded.unlink()
    assert compare(case, read_fields(case.recorded), replay(only_inputs.path, case.run)).differences == []


def test_qwen2_vl_needs_no_recorded_positions(tmp_path) -> None:
    case = Case(GOLDEN_RUNS / "qwen2vl_8x8x10", "framefusion_c0.3_s0.6_r0.1")
    only_inputs = stripped(case, tmp_path)
    assert not only_inputs.recorded.exists()
    assert compare(case, read_fields(case.recorded), replay(only_inputs.path, case.run)).differences == []


class TestTheCommand:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        """One case of each kind, to be changed."""
        shutil.copy(GOLDEN / "stsimdiff_03_newline_column_ties_t8_6x7.npz", tmp_path)
        shutil.copytree(GOLDEN_RUNS / "qwen2vl_8x8x10", tmp_path / "qwen2vl_8x8x10")
        return tmp_path

    def test_all_agree(self, folder, capsys) -> None:
        assert main([str(folder)]) == 0
        printed = capsys.readouterr().out
        assert "agrees   stsimdiff_03_newline_column_ties_t8_6x7: " in printed
        assert "agrees   qwen2vl_8x8x10/baseline: " in printed
        assert "not compared: s1_ambiguous (" in printed
        assert "4 cases: 4 agree, 0 differ, 0 could not be replayed" in printed

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("s1_keep_idx", lambda v: v[1:], "s1_keep_idx: "),
            ("s1_component_weight", lambda v: v + 1e-4, "s1_component_weight: differs by up to 0.0001"),
            ("s1_edges", lambda v: v[::-1], "s1_edges: "),
            ("s2_keep_idx", lambda v: np.append(v[:-1], v[-1] + 1), "s2_keep_idx: 1 of"),
            ("s2_pruning_ratio", lambda v: v + 1e-6, "s2_pruning_ratio: "),
            ("s1_new_field", lambda v: np.zeros(2), "s1_new_field: recorded, but not among our outputs"),
        ],
    )
    def test_a_changed_output_of_a_selection_is_found(self, folder, capsys, name, change, message) -> None:
        file = folder / "stsimdiff_03_newline_column_ties_t8_6x7.npz"
        arrays = dict(read_fields(file))
        np.savez(file, **{**arrays, name: change(arrays.get(name, np.zeros(1)))})
        assert main([str(file)]) == 1
        printed = capsys.readouterr().out
        assert "differs  stsimdiff_03" in printed and message in printed

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("gen_tokens", lambda v: v[::-1]),
            ("logits_last", lambda v: v + 2e-4),
            ("decode_position_ids", lambda v: v + 1),
            ("merge1_keep_index", lambda v: np.append(v[:-1], v[-1] + 1)),
            ("merge0_finished", lambda v: ~v),
        ],
    )
    def test_a_changed_output_of_a_run_is_found(self, folder, capsys, name, change) -> None:
        file = folder / "qwen2vl_8x8x10" / "framefusion_c0.3_s0.6_r0.1.npz"
        arrays = dict(read_fields(file))
        np.savez(file, **{**arrays, name: change(arrays[name])})
        assert main([str(folder)]) == 1
        printed = capsys.readouterr().out
        assert f"         {name}: " in printed
        assert "4 cases: 3 agree, 1 differ, 0 could not be replayed" in printed

    def test_wrong_input(self, folder, capsys, tmp_path) -> None:
        assert main([str(tmp_path / "nowhere")]) == 2
        assert "no recorded case at" in capsys.readouterr().err
        file = folder / "stsimdiff_03_newline_column_ties_t8_6x7.npz"
        arrays = dict(read_fields(file))
        is_input = replay_of(Case(file), read_fields(file)).is_input
        np.savez(file, **{name: value for name, value in arrays.items() if is_input(name)})
        assert main([str(file)]) == 2
        assert "holds no recorded outputs" in capsys.readouterr().out
        del arrays["hidden"]
        np.savez(file, **arrays)
        assert main([str(file)]) == 2
        assert "lacks the input 'hidden'" in capsys.readouterr().out
        file.write_bytes(b"no archive")
        assert main([str(file)]) == 2
        assert "cannot be read as a recorded case" in capsys.readouterr().out


class TestRefusals:
    def test_an_unknown_method(self, tmp_path) -> None:
        np.savez(tmp_path / "llavamini_01.npz", hidden=np.zeros(3), out=np.zeros(3))
        with pytest.raises(
            ConfigError, match="'llavamini', which this product does not implement; it has .*fastervlm"
        ):
            replay(tmp_path / "llavamini_01.npz")

    def test_settings_that_ours_has_no_choice_for(self, tmp_path) -> None:
        arrays = dict(read_fields(GOLDEN / "stsimdiff_01_default_t8_7x8.npz"))
        np.savez(tmp_path / "stsimdiff_x.npz", **{**arrays, "strategy": np.int64(2)})
        with pytest.raises(ConfigError, match="recorded with strategy=2; only 3 is implemented"):
            replay(tmp_path / "stsimdiff_x.npz")

    def test_runs(self) -> None:
        folder = GOLDEN_RUNS / "llava_video_grid9"
        with pytest.raises(
            ConfigError, match="needs the name of a run; recorded are baseline, fastv_k3_r0.5"
        ):
            replay(folder)
        with pytest.raises(
            ConfigError, match="'visionzip_d3' in .* is none that can be replayed; allowed: baseline"
        ):
            replay(folder, "visionzip_d3")
        with pytest.raises(ConfigError, match="is a file; a run"):
            replay(GOLDEN / "fastv_05_stub_k1_r1.npz", "baseline")
        with pytest.raises(DataError, match="holds no end-to-end case"):
            replay(GOLDEN, "baseline")

    def test_checkpoints(self, tmp_path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
        with pytest.raises(ConfigError, match="'llama'; runs can be replayed for LLaVA-Video, llava_llama"):
            load_family(tmp_path)

    def test_a_missing_input_is_named(self, tmp_path) -> None:
        with pytest.raises(DataError, match="lacks the input 'cost'; it has hidden"):
            Fields(tmp_path, {"hidden": np.zeros(1)})["cost"]
