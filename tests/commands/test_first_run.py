"""As a new user would try it: a miniature from the command line, the doctor, then the paper's table."""

from __future__ import annotations

import shutil

import pandas as pd

from helpers.paths import MINIATURES
from stsimdiff.commands import doctor
from stsimdiff.launchers.base import configurations
from stsimdiff.launchers.in_process import run_configurations
from stsimdiff.models.kit import miniatures


def test_table1_on_a_miniature_with_the_doctor_first(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    assert miniatures.main(["llava_video", "weights"]) == 0
    data = shutil.copytree(MINIATURES, tmp_path / "data")
    words = ["experiment=table1", "model.path=weights", f"data={data}", "logger=none"]
    assert doctor.main(words) == 0
    said = capfd.readouterr().out
    assert "FAILED" not in said and "dropping equals masking" in said
    found = configurations([*words, "limit=1", "run=look"])
    assert len(found) == 66
    # One of its three benchmarks: the others differ in nothing that a first run would trip over.
    run_configurations([cfg for cfg in found if cfg.benchmark.name == "videomme"])
    table = pd.read_csv(tmp_path / "results" / "look" / "table.csv")
    assert len(table) == 22 and set(table["n"]) == {1} and not table["n_failed"].any()
    printed = (tmp_path / "results" / "look" / "table.md").read_text()
    assert "Protocol: st_simdiff_paper (bingjunluo/ST-SimDiff" in printed
    assert "Fidelity of visionzip, a variant" in printed and "Fidelity of fastervlm, a variant" in printed
