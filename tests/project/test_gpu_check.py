"""The check of a GPU: every check's code runs on the CPU, and what needs a GPU says so instead of passing."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace

import pytest
import torch

from helpers.paths import ROOT
from scripts import gpu_check
from stsimdiff import compressors, models
from stsimdiff.commands import doctor
from stsimdiff.models.base import LoadOptions
from stsimdiff.models.kit import checks, running
from stsimdiff.models.kit.miniatures import Sizes, make
from stsimdiff.models.kit.running import FamilyCase
from stsimdiff.models.released import planned_shape


def test_every_check_on_the_cpu(tmp_path, capsys) -> None:
    words = ["--device", "cpu", "--tiny", "--families", "qwen2_5_vl", "--out", str(tmp_path)]
    assert gpu_check.main(words) == 0
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    rows = {row["check"]: row for row in found["rows"]}
    assert found["device"].endswith("CPU, tiny widths") and "failed" not in {
        row["state"] for row in rows.values()
    }
    for name in compressors.BUILTIN:
        row = rows[f"{name}: selections on the device equal the CPU's"]
        assert row["state"] == "ok" and "0 differ in float64, 0 in bfloat16" in row["measured"]
    for dtype in gpu_check.DTYPES:
        assert rows[f"qwen2_5_vl, {dtype}, sdpa: keep-all equals stock"]["state"] == "ok"
        masked = rows[f"qwen2_5_vl, {dtype}, sdpa: dropping equals masking"]
        assert masked["state"] == "ok" and masked["limit"].startswith("4 times")
    gpu = [
        row for name, row in rows.items() if "prefill at" in name or "copies of" in name or "memory" in name
    ]
    gpu.append(rows["CUDA events against the host's clock"])
    assert len(gpu) == 2 * (len(compressors.BUILTIN) - 2) + 2
    assert all(row["state"] == "not possible" and row["measured"].startswith(gpu_check.NEEDS) for row in gpu)
    lines = (tmp_path / "gpu_check.md").read_text().splitlines()
    assert len(lines) == len(rows) + 4 and lines[2] == "| check | measured | limit | state |"
    assert f"{len(rows) - len(gpu) - 2} ok, 0 failed, {len(gpu) + 2} not possible" in capsys.readouterr().out


def test_no_device(capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "finds no CUDA device here" in capsys.readouterr().err


def test_a_check_that_raises_fails_and_the_others_go_on(capsys) -> None:
    report = gpu_check.Report(60)

    def broken() -> str:
        raise RuntimeError("CUDA error: an illegal memory access")

    report.check("first", "none", broken)
    report.check("second", "none", lambda: "3 of 3")
    assert [row.state for row in report.rows] == ["failed", "ok"]
    assert report.rows[0].measured.startswith("RuntimeError: CUDA error: an illegal memory access")
    report.seconds = 0
    report.check("third", "none", lambda: "3 of 3")
    assert report.rows[2].state == "failed" and "--minutes" in report.rows[2].measured
    capsys.readouterr()


def test_a_failed_row_makes_the_exit_code_1(tmp_path, monkeypatch, capsys) -> None:
    for name in ("_bench", "_selections"):
        monkeypatch.setattr(gpu_check, name, lambda *_: None)
    monkeypatch.setattr(gpu_check, "_made", lambda *_: 1 / 0)
    words = ["--device", "cpu", "--tiny", "--families", "nvila", "--out", str(tmp_path)]
    assert gpu_check.main(words) == 1
    rows = json.loads((tmp_path / "gpu_check.json").read_text())["rows"]
    failed = [row for row in rows if row["state"] == "failed"]
    assert len(failed) == 5 and all("ZeroDivisionError" in row["measured"] for row in failed)
    capsys.readouterr()


def test_selections_that_differ_are_told(monkeypatch) -> None:
    class Other(compressors.resolve("random")):
        """Draws anew each time."""

        def start(self, layout, budget):
            object.__setattr__(self, "seed", len(seeds))
            seeds.append(1)
            return super().start(layout, budget)

    seeds: list[int] = []
    made = Other()
    monkeypatch.setattr(compressors, "resolve", lambda name: lambda: made)
    with pytest.raises(AssertionError, match=r"1 selections of 80 tokens; [1-9]\d* differ in float64"):
        gpu_check._same_selections(gpu_check.argparse.Namespace(tiny=True, device="cpu"), "random")


def test_copies_to_the_host_are_read_from_the_profiler_s_trace() -> None:
    copy = {"ph": "X", "cat": "gpu_memcpy", "args": {"bytes": 96, "stream": 7}}
    events = [
        {**copy, "name": "Memcpy DtoH (Device -> Pageable)"},
        {**copy, "name": "Memcpy HtoD (Pageable -> Device)"},
        {**copy, "name": "Memcpy DtoH (Device -> Pinned)", "args": {"bytes": 8}},
        {"ph": "X", "cat": "cpu_op", "name": "aten::copy_", "args": {}},
        {"ph": "M", "name": "process_name"},
    ]
    assert gpu_check.host_copies({"traceEvents": events}) == [96, 8]


NARROW = {"hidden_size": 256, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
TOWERS = {
    "qwen2_vl": {"embed_dim": 32, "hidden_size": 256, "num_heads": 2},
    "qwen2_5_vl": {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 256, "num_heads": 2},
    "qwen3_vl": {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 256, "num_heads": 2},
}


@pytest.mark.parametrize("name", sorted(models.FAMILIES))
def test_released_layouts_with_random_weights(name, tmp_path) -> None:
    """What the GPU check builds, but narrow: it loads, sees as many tokens as the released model, and is exact."""
    released = Sizes.released(name, torch.float32, "cpu")
    assert released.text["hidden_size"] == planned_shape(name, None, LoadOptions())[0].decoder.hidden
    small = TOWERS.get(name, {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2})
    sizes = dataclasses.replace(released, text={**released.text, **NARROW}, tower={**released.tower, **small})
    path = make(name, tmp_path / "checkpoint", sizes=sizes)
    options = {option: values[0] for option, values in models.options_of(name).items()}
    if "min_frame_tokens" in options:
        options |= {"min_frame_tokens": 128, "max_frame_tokens": 768, "max_video_tokens": 115200}
    given = LoadOptions("cpu", "float32", family=options)
    family = models.resolve(name).load(str(path), given)
    assert family.shape.grid(16, 360, 640) == planned_shape(name, None, given)[0].grid(16, 360, 640)
    assert family.shape.decoder.layers == 3
    case = FamilyCase.of(family)
    assert "bit for bit" in doctor.keep_all(case)


@pytest.mark.parametrize("foreign", [False, True])
def test_a_stock_model_of_several_results(foreign, monkeypatch) -> None:
    """An H100 gives two for Qwen3-VL in float16: keeping all must give one of these."""
    turn = itertools.cycle((0.0, 0.5))

    def generated(case, run=None, forced=None):
        logits = torch.tensor([[next(turn) + (0.25 if foreign and run is not None else 0)]])
        return logits, torch.zeros(1), SimpleNamespace(entering=[8] * 3, mlp=[8] * 3)

    monkeypatch.setattr(running, "generate", generated)
    monkeypatch.setattr(checks, "generate", generated)
    grid = SimpleNamespace(grid=SimpleNamespace(tokens=8))
    case = SimpleNamespace(family=SimpleNamespace(decoder=range(3)), video=grid)
    if foreign:
        with pytest.raises(AssertionError, match="2 results that are none of 2 results of the stock model"):
            doctor.keep_all(case)
    else:
        said = "bit for bit one of 2 results of the stock model itself in 16 runs, up to 0.5 apart"
        assert doctor.keep_all(case) == said


def test_the_shell_script_runs_the_module() -> None:
    text = (ROOT / "scripts" / "gpu_check.sh").read_text()
    assert 'exec "$python" -m scripts.gpu_check "$@"' in text
    assert (ROOT / "scripts" / "gpu_check.sh").stat().st_mode & 0o100
