"""The Python API, on the embedded model and on stock models of every family that has a stock class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import stsimdiff
from helpers.processes import python
from stsimdiff import FastV, NoCompression, RandomTokens, STSimDiff, VisionZip, compress, load, read
from stsimdiff.api import STOCK
from stsimdiff.compressors import BUILTIN
from stsimdiff.data.clips import rows
from stsimdiff.data.clips.questions import prompt
from stsimdiff.errors import BudgetError, ConfigError, UserError

CLASSES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
}
FRAMES = np.random.default_rng(0).integers(0, 255, (6, 3, 56, 84), dtype=np.uint8)


def test_the_package_gives_every_method_by_the_name_of_its_class() -> None:
    for target in BUILTIN.values():
        cls = getattr(stsimdiff, target.rpartition(".")[2])
        assert f"{cls.__module__}.{cls.__qualname__}" == target
        assert cls.__name__ in dir(stsimdiff)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        stsimdiff.Nothing  # noqa: B018


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = "import sys, stsimdiff; print([n for n in ('torch', 'transformers', 'pandas', 'yaml') if n in sys.modules])"
    assert python("-c", code, check=True).stdout.strip() == "[]"


class TestLoaded:
    @pytest.fixture(scope="class")
    def model(self):
        return load()

    def test_it_answers_what_a_run_stores(self, model, data, tmp_path, command_line) -> None:
        words = ["compressor=none,st_simdiff", "budget.retention=0.3", "limit=6", "run=one", "logger=none"]
        assert command_line("-m", *words, f"results={tmp_path}", f"benchmark.data={data}") == 0
        stored = read(tmp_path / "one")
        assert len(stored) == 12 and set(stored["method"]) == {"none", "st_simdiff"}
        questions = {row["id"]: row for row in rows.read(data)}
        for method, answers in stored.groupby("method"):
            for _, answer in answers.iterrows():
                row = questions[answer["id"]]
                ask = str(data / "videos" / row["video"]), prompt(row["question"], row["options"]), 4
                if method == "none":
                    assert model.answer(*ask) == answer["answer"]
                    continue
                with model.compress(STSimDiff(), retention=0.3) as trace:
                    assert model.answer(*ask) == answer["answer"]
                assert trace.entering == answer["tokens_per_layer"]

    def test_the_trace_is_that_of_the_latest_answer(self, model, data) -> None:
        one, two = sorted((data / "videos").glob("*.mp4"))[:2]
        with model.compress(RandomTokens(), retention=0.5) as trace:
            model.answer(one, "What is it?")
            first = trace.stages[0].kept
            model.answer(two, "What is it?")
            assert len(trace.stages) == 1 and not torch.equal(trace.stages[0].kept, first)
        assert trace.retention()["tokens"] == pytest.approx(0.5)

    def test_a_method_that_needs_the_tower_gets_it_for_a_video_encoded_without(self, model, data) -> None:
        video = next((data / "videos").glob("*.mp4"))
        model.answer(video, "What is it?")
        with model.compress(VisionZip(), retention=0.3) as trace:
            model.answer(video, "What is it?")
        assert trace.retention()["tokens"] == pytest.approx(0.3, rel=0.02)

    def test_an_overlay_shows_the_frames_with_the_reasons_of_the_trace(self, model, data) -> None:
        one, two = sorted((data / "videos").glob("*.mp4"))[:2]
        with model.compress(FastV(), retention=0.3) as trace:
            with pytest.raises(ValueError, match="holds no answer yet"):
                model.overlay(one, trace)
            model.answer(one, "What is it?")
        pictures = model.overlay(str(one), trace, "FastV")
        assert len(pictures) == 16 and len({picture.size for picture in pictures}) == 1
        # A frame of the video under its tokens: 8 x 8 cells, of which a dropped one is mostly black.
        codes = trace.reason.reshape(8, 8, 8)
        number = 5
        frame = np.asarray(pictures[number], dtype=float)[:448]
        cells = frame.reshape(8, 56, 8, 56, 3)[:, 10:-10, :, 10:-10].mean((1, 3))
        colour = cells.max(-1) - cells.min(-1)
        dropped = codes[number // 2].numpy() == 0
        assert 0 < dropped.sum() < 64 and colour[dropped].mean() < colour[~dropped].mean()
        assert not np.array_equal(frame, np.asarray(model.overlay(two, trace)[number], dtype=float)[:448])
        trace.video = 7
        with pytest.raises(ValueError, match=r"of 7 tokens, .* has 512"):
            model.overlay(two, trace)

    def test_an_error_ends_the_compression(self, model, data) -> None:
        video = next((data / "videos").glob("*.mp4"))
        fastv = FastV()
        with (
            pytest.raises(ValueError, match="end the first `with`"),
            model.compress(fastv, retention=0.5),
            model.compress(fastv, retention=0.5),
        ):
            pass
        assert model.answer(video, "What is it?")

    def test_wrong_settings_are_refused_before_a_model_is_loaded(self, model) -> None:
        with pytest.raises(ConfigError, match=r"model\.dtype=float15"):
            load(dtype="float15")
        with pytest.raises(ConfigError, match=r"model\.device_map\.model='gpu' is out of range"):
            load(device_map={"model": "gpu"})
        with pytest.raises(ConfigError, match="did you mean qwen2_5_vl"):
            load("qwen2_5_v")
        with pytest.raises(UserError, match="no checkpoint at model.path=/nowhere/at all"):
            load("qwen2_5_vl", "/nowhere/at all")
        with pytest.raises(BudgetError), model.compress(FastV(), retention=0.1, budget="compute"):
            pass


@pytest.mark.parametrize("family", STOCK, scope="class")
class TestStock:
    @pytest.fixture(scope="class")
    def stock(self, family, miniature):
        folder = miniature(family)
        model = getattr(transformers, CLASSES[family]).from_pretrained(folder).eval()
        return model, transformers.AutoProcessor.from_pretrained(folder)

    @pytest.fixture(scope="class")
    def inputs(self, stock):
        _, processor = stock
        message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What is it?"}]}
        chat = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        metadata = [{"fps": 2.0, "total_num_frames": 6, "frames_indices": list(range(6)), "duration": 3.0}]
        return processor(
            text=[chat],
            videos=[list(FRAMES)],
            video_metadata=metadata,
            do_sample_frames=False,
            return_tensors="pt",
        )

    def logits(self, model, inputs) -> torch.Tensor:
        out = model.generate(
            **inputs, max_new_tokens=3, min_new_tokens=3, output_logits=True, return_dict_in_generate=True
        )
        return torch.stack(out.logits)

    def test_all_tokens_are_what_the_stock_model_says_alone(self, stock, inputs) -> None:
        model, _ = stock
        settings, keys = model.generation_config, set(model.__dict__)
        alone = self.logits(model, inputs)
        with compress(model, NoCompression(), retention=1.0) as trace:
            assert torch.equal(self.logits(model, inputs), alone)
        assert trace.entering == [trace.video] * trace.layers and trace.video > 20
        assert torch.equal(self.logits(model, inputs), alone)
        assert model.generation_config is settings and set(model.__dict__) == keys
        assert not any(module._forward_pre_hooks for module in model.modules())

    @pytest.mark.parametrize("method", [FastV(layer=1), VisionZip()], ids=["fastv", "visionzip"])
    def test_dropped_tokens_are_gone(self, stock, inputs, method) -> None:
        model, _ = stock
        with compress(model, method, retention=0.5) as trace:
            first = self.logits(model, inputs)
            kept = trace.stages[-1].kept
            assert torch.equal(self.logits(model, inputs), first), "a second prompt begins anew"
        assert trace.retention()["tokens"] == pytest.approx(0.5, rel=0.02)
        assert torch.equal(trace.stages[-1].kept, kept)
        assert not torch.equal(first, self.logits(model, inputs))

    def test_a_call_of_the_model_itself_is_compressed_too(self, stock, inputs) -> None:
        model, _ = stock
        with compress(model, FastV(layer=1), retention=0.5), torch.no_grad():
            called, generated = model(**inputs).logits[0, -1], self.logits(model, inputs)[0, 0]
        assert torch.allclose(called, generated, atol=1e-4)

    def test_what_it_cannot_do_is_refused(self, stock, inputs) -> None:
        model, _ = stock
        two = {name: torch.cat([value, value]) for name, value in inputs.items() if torch.is_tensor(value)}
        with (
            compress(model, FastV(layer=1), retention=0.5),
            pytest.raises(ValueError, match="batch of one|with one video"),
        ):
            model.generate(**two, max_new_tokens=1)
        model.train()
        with (
            pytest.raises(ConfigError, match=r"call model\.eval\(\)"),
            compress(model, FastV(), retention=0.5),
        ):
            pass
        model.eval()


def test_a_model_of_another_class_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match="Qwen2VLForConditionalGeneration"),
        compress(torch.nn.Linear(2, 2), FastV(), retention=0.5),
    ):
        pass
