"""``plan=true``: what a run would cost, without weights, without writing; against what the run then stores."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.embedded_runs import stored
from helpers.paths import MINIATURES
from helpers.synthetic_run import answers, write_arm
from stsimdiff import compressors
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import ScoreCompressor
from stsimdiff.config.arms import arm_from_config
from stsimdiff.config.settings import settings_from_config
from stsimdiff.errors import BudgetError, ConfigError, DataError
from stsimdiff.launchers.base import configurations
from stsimdiff.launchers.in_process import run_configurations
from stsimdiff.models.llava_video import LlavaVideo
from stsimdiff.plan.dry_run import dry_run
from stsimdiff.plan.estimate import _stored, plan_pass
from stsimdiff.plan.show import duration, quantity, show
from stsimdiff.tokens import Grid
from stsimdiff.video.headers import read_header

FIXTURES = f"benchmark.data={MINIATURES}/${{benchmark.name}}"


pytestmark = pytest.mark.usefixtures("no_model")


def planned(*words: str):
    """The plans of a command line, all its arms in one pass."""
    found = [(cfg, settings_from_config(cfg)) for cfg in configurations(["plan=true", *words])]
    assert all(settings == found[0][1] for _, settings in found)
    return plan_pass(found[0][1], [arm_from_config(cfg, s) for cfg, s in found])


def test_nothing_is_loaded_and_nothing_is_written(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [f"results={tmp_path}/results", "compressor=none,st_simdiff,fastv", "budget.retention=0.3,0.5"]
    run_configurations(configurations(["plan=true", "plan_tflops=2", *words]))
    assert not list(tmp_path.iterdir())
    said = capsys.readouterr().out
    assert "questions: 896 about 128 videos, 0.284 hours of video" in said
    assert "5 cells (arms of 1 models on 1 benchmarks), 4480 answers to give, 0 there already" in said
    assert "2 TFLOP/s, which rests on plan_tflops" in said
    assert "the data of clips is not made yet" in said and "nothing was written" in said


def test_the_plan_is_what_the_run_stores(tmp_path, data, monkeypatch) -> None:
    monkeypatch.undo()
    words = [
        f"results={tmp_path}",
        f"benchmark.data={data}",
        "limit=6",
        "logger=none",
        "budget.retention=0.3",
    ]
    words += ["compressor=none,random,st_simdiff,fastv,visionzip"]
    before = planned(*words)
    assert before.rests_on.startswith("a product of torch.float32 matrices measured on")
    assert [plan.open for plan in before.arms] == [6] * 5 and before.open_videos == 1
    run_configurations(configurations(words))
    for plan in before.arms:
        rows = stored(before.settings, plan.arm)
        # The text's tokens are guessed, and how ST-SimDiff's first stage thins is that of another video.
        loose = 0.25 if plan.arm.method == "st_simdiff" else 0.06
        flops = sum(row["llm_flops"] for row in rows)
        assert plan.flops == pytest.approx(flops, rel=loose)
        assert plan.kv == pytest.approx(rows[0]["kv_bytes"], rel=loose)
        assert before.vision >= rows[0]["flops"]["vision"] + rows[0]["flops"]["projector"]
    unlimited = [word for word in words if not word.startswith("limit=")]
    after = planned(*unlimited, "limit=null")
    assert [(plan.answered, plan.open) for plan in after.arms] == [(6, 8)] * 5
    # One of each arm: the others continued from the prefill of the video's first question, and have no time of it.
    assert "the prefill of 5 answers stored in" in after.rests_on
    assert after.reading > 0 and after.seconds > after.reading
    again = planned(*words)
    assert again.flops == 0 and again.disk["answers"] == 0


def test_a_real_model_without_its_weights(capsys, tmp_path) -> None:
    for file, content in LlavaVideo.released_files.items():
        (tmp_path / file).write_text(json.dumps(content))
    (tmp_path / "config.json").write_text(
        json.dumps(LlavaVideo.released_files["config.json"] | {"num_hidden_layers": 14})
    )
    words = [FIXTURES, "plan_tflops=400", f"results={tmp_path}/results"]
    plan = planned(*words, "model=llava_video", "benchmark=egoschema", f"model.path={tmp_path}")
    assert plan.source == f"the configuration in {tmp_path}" and plan.shape.decoder.layers == 14
    words = ["plan=true", "experiment=table1", *words, "model.path=/nowhere"]
    run_configurations(configurations(words))
    said = capsys.readouterr().out
    assert "the released lmms-lab/LLaVA-Video-7B-Qwen2, as there is no configuration at" in said
    assert "66 cells (arms of 1 models on 3 benchmarks)" in said
    assert "840 (4 x 14 x 15)" in said, "four seconds, a frame of each"
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("name", "width", "patch", "deep"), [("qwen2_5_vl", 1280, 1176, 0), ("qwen3_vl", 1152, 1536, 3)]
)
def test_a_tower_that_rotates_its_keys_in_float32(name, width, patch, deep) -> None:
    """An H100's peak for 92,160 patches in bfloat16 was 6.38 and 6.87 GB; a plan without float32 said 5.06 and 4.41."""
    plan = planned(f"model={name}", FIXTURES, "benchmark=videomme", "plan_tflops=1")
    patches, tokens = 4 * plan.largest.tokens, plan.largest.tokens
    rotating = patches * (5 * 2 * width + 6 * 4 * width) + patches * 4 * patch
    length = plan.text + tokens
    assert plan.memory["activations"] == max(
        rotating, 6 * length * (plan.shape.decoder.intermediate + plan.shape.decoder.hidden)
    )
    assert rotating > patches * 2 * (2 * plan.shape.tower.intermediate + 4 * width)
    assert plan.memory["features"] == 2 * tokens * plan.shape.decoder.hidden * (1 + deep)


def test_sixty_four_frames_of_the_paper_s_model() -> None:
    words = ["model=llava_video", "model.pooling=bilinear", FIXTURES, "benchmark=videomme", "plan_tflops=1"]
    plan = planned(*words)
    assert 8.0e9 < plan.shape.parameters < 8.1e9
    assert plan.memory["weights"] == 2 * plan.shape.parameters
    # In bfloat16: the gate, what it gates and their product, and three hidden states, of every token.
    length = plan.text + plan.largest.tokens
    assert plan.memory["activations"] == 2 * length * 3 * (18944 + 3584)
    assert "features kept for other passes" not in plan.memory
    more = planned(*words, "cache.max_gb=0.01")
    assert more.memory["features kept for other passes"] == 10_000_000
    # The fixture's clips have 16 frames; a video with enough of them would have as many tokens as the paper says.
    assert plan.shape.grid(64, 1, 1).tokens == 64 * 14 * 15


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan_tflops=0"], "plan_tflops=0 is out of range; allowed: a number above 0"),
        (["plan_tflops=fast"], "plan_tflops='fast' is out of range"),
        (["model=qwen2_5_vl", "model.frames=0"], r"model\.frames=0 is out of range"),
        (["model=embedded", "model.path=/nowhere"], "no checkpoint at model.path=/nowhere"),
    ],
)
def test_wrong_input(words, message) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        planned(*words)


def test_plan_is_true_or_false() -> None:
    with pytest.raises(ConfigError, match="plan='maybe' is out of range; allowed: true, false"):
        run_configurations(configurations(["plan=maybe"]))


def test_what_would_stop_the_run_stops_the_plan(own_data) -> None:
    with pytest.raises(BudgetError, match="cannot be met"):
        planned("model=qwen2_vl", "compressor=fastv", "budget=compute", "budget.retention=0.05", "limit=1")
    (own_data / "videos" / "clip001.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"clip001\.mp4 cannot be decoded.*\n1 of 2 videos cannot be used"):
        planned(f"benchmark.data={own_data}")
    plan = planned(f"benchmark.data={own_data}", "benchmark.allow_missing=true", "plan_tflops=1")
    assert plan.videos == 1 and "7 of 14 questions would fail" in plan.notes[0]


@dataclass(frozen=True)
class Picky(ScoreCompressor):
    """Refuses whatever is not as wide as the real thing."""

    def score(self, tokens, layout):
        if tokens.features.shape[1] != 3584:
            raise RuntimeError("needs 3584 values")
        return tokens.features.norm(dim=1)


def test_a_method_that_fails_on_a_synthetic_video_is_said(capsys) -> None:
    word = f"compressor._target_={__name__}.Picky"
    run_configurations(configurations(["plan=true", "plan_tflops=1", word, "limit=3"]))
    assert "RuntimeError: needs 3584 values" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["tokens", "compute"])
@pytest.mark.parametrize("name", [n for n in compressors.BUILTIN if n not in ("none", "no_video")])
def test_a_dry_run_meets_the_budget(name: str, kind: str) -> None:
    trace = dry_run(compressors.resolve(name)(), Budget(kind, 0.4), Grid(16, 8, 8), 50, 12)
    assert trace.retention()[kind] == pytest.approx(0.4, rel=0.02)
    assert len(trace.entering) == len(trace.mlp) == 12
    assert all(a >= b for a, b in zip(trace.entering, trace.mlp, strict=True))


def test_a_header_says_frames_and_size(data, tmp_path) -> None:
    header = read_header(data / "videos" / "clip000.mp4")
    assert (header.frames, header.seconds, header.height, header.width) == (16, 8.0, 112, 112)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DataError, match="is empty"):
        read_header(tmp_path / "empty.mp4")


def test_numbers_in_words() -> None:
    assert [quantity(n, "B") for n in (0, 999, 1500, 2.5e15)] == ["0 B", "999 B", "1.5 kB", "2.5 PB"]
    assert [duration(s) for s in (30, 600, 10000, 1e6)] == ["30 s", "10 min", "2.8 h", "11.6 days"]


def test_before_the_data_is_here_its_published_size_counts(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = planned("model=llava_video", "benchmark=videomme", "budget=compute", "plan_tflops=100")
    assert (plan.questions, plan.videos, round(plan.hours)) == (2700, 900, 254)
    assert plan.typical == plan.largest == Grid(64, 14, 15)
    assert any("videomme is not here" in note and "2405.21075" in note for note in plan.notes)
    with pytest.raises(DataError, match="no data of mlvu at"):  # its number of videos is not known
        planned("model=llava_video", "benchmark=mlvu")
    with pytest.raises(DataError, match="no data of videomme at"):
        settings_from_config(configurations(["benchmark=videomme"])[0])


@dataclass(frozen=True)
class Scribbler(ScoreCompressor):
    """Writes into what it is given, which the engine does not allow."""

    def score(self, tokens, layout):
        return tokens.features.zero_().norm(dim=1)


def test_a_dry_run_is_the_engine_s_own() -> None:
    plan = planned("plan_tflops=1", f"compressor._target_={__name__}.Scribbler", "limit=3")
    (reason,) = [arm.reason for arm in plan.arms]
    assert reason.startswith("MethodFault: Scribbler, at its input place, wrote into tokens.features")


def test_stored_answers_without_times_or_flops_say_no_speed(tmp_path: Path) -> None:
    first, second, third = answers(0.9, 1.0)[:3]
    rows = [
        first | {"times": None},
        second | {"llm_flops": None},
        third | {"times": {"prefill": None, "decode": 0.4}},
    ]
    folder = write_arm(tmp_path, "none", 1.0, rows, model={"name": "embedded", "checkpoint": "abc"})
    arm = json.loads((folder / "arm.json").read_text())["arm"]
    settings = SimpleNamespace(folder=tmp_path, retry_failed=False, model=SimpleNamespace(checkpoint="abc"))
    found, sizes, speeds, reading = _stored(settings, [SimpleNamespace(id=arm)])
    assert found == {arm: {row["id"] for row in rows}} and len(sizes) == 1
    assert speeds == [] and reading == pytest.approx(statistics.median([0.1, 0.4]))


def test_a_continued_prefill_is_a_whole_one_without_the_video():
    from stsimdiff.cost.decoder import (
        DecoderShape,
        attention_flops,
        continued_flops,
        mlp_flops,
        prefill_flops,
    )

    shape = DecoderShape(layers=2, hidden=8, intermediate=16, heads=2, key_heads=1, head_dim=4, vocabulary=10)
    counts = [20, 10], [20, 10]
    whole = prefill_flops(shape, 5, *counts)
    held = [attention_flops(shape, video) + mlp_flops(shape, video) for video in (20, 10)]
    assert [continued_flops(shape, 5, *counts, shared) for shared in (0, 1, 2)] == [
        whole,
        whole - held[0],
        whole - sum(held),
    ]


def test_a_plan_counts_prompts_prefilled_whole_and_with_one_prefill_a_video(capsys):
    from stsimdiff.cost.decoder import continued_flops, prefill_flops

    words = "compressor=none,random,fastv", "budget.retention=0.3", "plan_tflops=1"
    plan = planned(*words)
    questions, videos = plan.questions, plan.videos
    assert questions > videos > 1
    assert [arm.layers_shared for arm in plan.arms] == [6, 6, 2]
    decoder = plan.shape.decoder
    for arm in plan.arms:
        counts = arm.trace.entering, arm.trace.mlp
        first = prefill_flops(decoder, plan.text, *counts)
        further = continued_flops(decoder, plan.text, *counts, arm.layers_shared)
        method = questions * (arm.compressor or 0)
        assert arm.flops == questions * first + method
        assert arm.flops_shared == videos * first + (questions - videos) * further + method < arm.flops
    show([(plan.settings, [arm.arm for arm in plan.arms])])
    said = capsys.readouterr().out
    assert "one prefill a video" in said and "where questions share a prefill" in said
    # A video with one question gains nothing.
    assert all(arm.flops == arm.flops_shared for arm in planned(*words, "limit=1").arms)
