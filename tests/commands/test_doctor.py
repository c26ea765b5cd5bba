"""The doctor: a line for each check, with numbers; what fails says what to do and makes the exit code 1."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hydra.errors import HydraException
from safetensors.torch import load_file, save_file

from helpers.paths import MINIATURES, ROOT
from stsimdiff.commands import doctor
from stsimdiff.errors import ConfigError
from stsimdiff.models import FAMILIES

EXACT = ("prompt", "keep-all equals stock", "dropping equals masking", "nothing is left behind")


def examined(capsys, *words: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit code, and each check's state and text by its name."""
    code = doctor.main(["logger=none", *words])
    found: dict[str, tuple[str, str]] = {}
    width = 8 + doctor.NAME_WIDTH
    for line in capsys.readouterr().out.splitlines():
        if line.startswith(" " * width) and found:
            name = next(reversed(found))
            found[name] = (found[name][0], f"{found[name][1]}\n{line.strip()}")
        elif line[:8].strip() in ("ok", "FAILED", "skipped"):
            found[line[8:width].strip()] = (line[:8].strip(), line[width:])
    return code, found


def test_a_skipped_check_is_not_passed(capsys, monkeypatch) -> None:
    def skipped() -> str:
        raise doctor.CheckSkipped("nothing to check")

    def machine(doing: doctor.Doctor, settings: object) -> None:
        for probe in (lambda: "fine", skipped, lambda: "fine", lambda: 1 / 0):
            doing.check("a check", probe)

    monkeypatch.setattr(doctor, "_machine", machine)
    monkeypatch.setattr(doctor, "_data", lambda *some: {})
    monkeypatch.setattr(doctor, "_model", lambda *some: None)
    assert doctor.main(["logger=none"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 4 checks passed; 1 failed; 1 skipped"


def test_the_embedded_model(capsys) -> None:
    code, found = examined(
        capsys, "compressor=none,st_simdiff,framefusion", "budget=compute", "budget.retention=0.5", "limit=8"
    )
    states = {name: state for name, (state, _) in found.items()}
    assert code == 0 and set(states.values()) == {"ok", "skipped"}, found
    assert [name for name, state in states.items() if state == "skipped"] == ["W&B"]
    assert "8 questions about 2 videos" in found["data clips"][1]
    assert "8 of 8 frames" in next(text for name, (_, text) in found.items() if name.startswith("decoder"))
    assert "all 116 tensors accounted for" in found["checkpoint"][1]
    prompt = found["prompt"][1]
    assert "|<|vision_start|>|[210 video tokens]|<|vision_end|>|" in prompt and "assistant" in prompt
    assert found["none"][1].startswith("100.0% of 512 tokens kept")
    for name in ("st_simdiff", "framefusion"):
        assert found[name][1].startswith("budget 50% (compute): ")
        share = float(re.search(r"([\d.]+)% of the compute", found[name][1])[1])
        assert share == pytest.approx(50.0, abs=1.0)
    assert "16 frames of 112 x 112: 512 video tokens" in found["largest prompt"][1]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_s_miniature(family, miniature, capsys) -> None:
    words = [
        f"model={family}",
        f"model.path={miniature(family)}",
        "model.frames=8",
        "limit=4",
        "compressor=random,visionzip",
    ]
    code, found = examined(capsys, *words)
    assert code == 0, found
    assert all(found[name][0] == "ok" for name in (*EXACT, "random", "visionzip", "largest prompt"))
    assert "not the sizes of" in found["checkpoint"][1]


def test_everything_that_fails_is_said_and_the_rest_goes_on(tmp_path, capsys) -> None:
    data = Path(shutil.copytree(MINIATURES / "videomme", tmp_path / "videomme"))
    lost = sorted(data.rglob("*.mp4"))[0]
    lost.unlink()
    words = ["benchmark=videomme", f"data={tmp_path}", "compressor=random", "model.frames=4"]
    code, found = examined(capsys, *words)
    assert code == 1 and found["data videomme"][0] == "FAILED"
    assert lost.stem in found["data videomme"][1] and "allow_missing=true" in found["data videomme"][1]
    assert found["random"][0] == "ok", "the other videos serve"


def test_data_that_is_not_there(tmp_path, capsys) -> None:
    words = ["compressor=random", "model.frames=4", f"data={tmp_path}"]
    code, found = examined(capsys, "benchmark=videomme", *words)
    assert code == 1 and found["data videomme"][0] == "FAILED" and str(tmp_path) in found["data videomme"][1]
    assert found["random"][0] == "ok", "a made-up video serves"
    # Nobody has published how many videos it has, so nothing can be planned.
    code, found = examined(capsys, "benchmark=mlvu", *words)
    assert code == 1 and found["data"][0] == "FAILED" and "make data BENCHMARK=mlvu" in found["data"][1]


def test_weights_that_are_not_there(tmp_path, capsys) -> None:
    code, found = examined(capsys, "model=qwen2_vl", f"model.path={tmp_path}", "limit=4")
    assert code == 1 and found["checkpoint's files"][0] == "FAILED"
    assert "hf download Qwen/Qwen2-VL-7B-Instruct" in found["checkpoint's files"][1]
    assert found["data clips"][0] == "ok" and "checkpoint" not in found


def test_a_tensor_too_few(own_miniature, capsys) -> None:
    path = own_miniature("nvila")
    file = path / "mm_projector" / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if name != "layers.4.bias"}, file)
    code, found = examined(capsys, "model=nvila", f"model.path={path}", "limit=4")
    state, text = found["checkpoint"]
    assert code == 1 and state == "FAILED"
    assert str(path / "mm_projector") in text and text.endswith("1 missing: layers.4.bias")


def test_methods_of_the_user_s(capsys, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "methods"))
    words = ["compressor=scenes.Scenes", "compressor.threshold=0.8", "budget.retention=0.3", "limit=4"]
    code, found = examined(capsys, *words)
    assert code == 0 and found["Scenes"][0] == "ok" and "30.1% of 512 tokens kept" in found["Scenes"][1]
    monkeypatch.setattr(doctor, "_load", lambda *some: 1 / 0)
    with pytest.raises(
        ConfigError, match=r"compressor\.treshold is unknown: Scenes has the parameters threshold"
    ):
        doctor.main([words[0], "compressor.treshold=0.8"])


def test_a_method_that_misses_its_budget(capsys) -> None:
    words = ["compressor=st_simdiff", "compressor.pruning=false", "compressor.tau_sim=1.0", "limit=4"]
    code, found = examined(capsys, *words, "budget.retention=0.1")
    assert code == 1 and found["st_simdiff"][0] == "FAILED"
    assert "its budget is 10% of the tokens" in found["st_simdiff"][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fix"], "--fix is no flag of doctor"),
        (["compressor=fastvv"], "fastvv"),
        (["budget.retention=3"], r"budget\.retention=3"),
    ],
)
def test_wrong_settings(words, message) -> None:
    with pytest.raises((ConfigError, HydraException), match=message):
        doctor.main(words)


def test_a_tokenizer_of_another_model(own_miniature, capsys) -> None:
    path = own_miniature("qwen2_5_vl")
    template = path / "chat_template.jinja"
    file = path / "tokenizer_config.json"
    if template.is_file():
        template.write_text("<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>hello<|im_end|>\n")
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": "<|video_pad|>hello"}))
    code, found = examined(capsys, "model=qwen2_5_vl", f"model.path={path}", "limit=4", "model.frames=4")
    assert (
        code == 1
        and found["prompt"][0] == "FAILED"
        and "the question is not in the prompt" in found["prompt"][1]
    )
