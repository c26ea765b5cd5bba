"""One prefill for all questions of a video: the same logits and answers, costs of a question alone, times of none."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import pytest
import torch

from helpers.embedded_runs import prepared, stored
from helpers.written import json_lines
from stsimdiff import models
from stsimdiff.budget import Budget
from stsimdiff.compressors import BUILTIN, resolve
from stsimdiff.compressors.base import Hidden, Places, Run, ScoreCompressor, top
from stsimdiff.compressors.chain import Chain
from stsimdiff.compressors.controls import NoCompression, NoVideo, RandomTokens, UniformFrames
from stsimdiff.compressors.dart import DART
from stsimdiff.compressors.dycoke import DyCoke
from stsimdiff.compressors.fastv import FastV
from stsimdiff.compressors.framefusion import FrameFusion
from stsimdiff.compressors.prunevid import PruneVid
from stsimdiff.compressors.sparsevlm import SparseVLM
from stsimdiff.compressors.st_simdiff import STSimDiff
from stsimdiff.compressors.sttm import STTM
from stsimdiff.engine import Compression, lent, prefix
from stsimdiff.engine.prefix import SharedPrefix, shared_layers
from stsimdiff.evaluate import run, session
from stsimdiff.evaluate.guard import Guard
from stsimdiff.evaluate.store import checked_answers
from stsimdiff.kit import checks
from stsimdiff.kit.running import CompressorCase
from stsimdiff.models.kit import running
from stsimdiff.tokens import Reason, Selection

OTHER = "How many animals are there, and of which kind?\nA. none\nB. one cat"
FREE = {
    "none", "no_video", "random", "uniform_frames", "spatial_pool", "evs", "visionzip", "fastervlm", "prumerge",
    "vidcom2", "divprune", "scissor", "sttm", "fastvid",
}  # fmt: skip
"""Methods that read nothing of the question whatever their parameters."""


@dataclass(frozen=True)
class Renumbered(RandomTokens):
    positions = "renumbered"


class _EarlyRun(Run):
    """Drops at the input, remembers how, and drops again by the attention of the last layer but one."""

    def __init__(self, layout, budget) -> None:
        self.layer = layout.layers - 1
        self.places = Places(
            input=True, before=frozenset({self.layer}), attention=frozenset({self.layer - 1})
        )
        self.norms: torch.Tensor | None = None

    def at_input(self, tokens):
        self.norms = tokens.features.norm(dim=1)
        mask = top(self.norms, int(0.7 * len(tokens)))
        self.norms = self.norms[mask]
        return Selection.from_mask(mask, Reason.EVENT)

    def before_layer(self, layer, tokens, attention):
        if attention is None:
            return None
        assert len(self.norms) == len(tokens)
        score = attention.mean(0)
        # What stays keeps the reason that it has.
        return Selection.from_mask(top(score, len(tokens) // 2), Reason.ALL)


@dataclass(frozen=True)
class Early(RandomTokens):
    def start(self, layout, budget):
        return _EarlyRun(layout, budget)


class _WithinRun(Run):
    """Drops between the attention and the MLP of a layer, by the tokens alone."""

    places = Places(between=frozenset({1}))

    def between(self, layer, tokens, attention):
        return Selection.from_mask(top(tokens.features.norm(dim=1), len(tokens) // 2), Reason.ALL)


@dataclass(frozen=True)
class Within(RandomTokens):
    def start(self, layout, budget):
        return _WithinRun()


class _NamingRun(_EarlyRun):
    """The same; it says what it remembers."""

    input_state = ("norms",)


@dataclass(frozen=True)
class Naming(RandomTokens):
    def start(self, layout, budget):
        return _NamingRun(layout, budget)


class _FadingRun(Run):
    """Drops at the input; before layer 1 each generated token removes the video token that its norms rank next."""

    places = Places(input=True, decoding=frozenset({1}), watched=frozenset({0}))

    def at_input(self, tokens):
        mask = top(tokens.features.norm(dim=1), int(0.4 * len(tokens)))
        self.order = mask.nonzero()[:, 0]
        return Selection.from_mask(mask, Reason.EVENT)

    def at_token(self, layer, step, cached, attention):
        assert attention.shape[1] == len(self.order) and cached.tolist() == self.order[step:].tolist()
        return Hidden(cached[:1], removed=True)


@dataclass(frozen=True)
class Fading(RandomTokens):
    def start(self, layout, budget):
        return _FadingRun()


@pytest.mark.parametrize(
    "method",
    [
        NoCompression(),
        NoVideo(),
        RandomTokens(),
        Renumbered(),
        STTM(layer=1),
        FastV(layer=1),
        FastV(layer=2),
        DART(layer=1),
        DART(layer=2),
        PruneVid(selected_layer=1),
        STSimDiff(layer=1),
        Early(),
        Naming(),
        Within(),
        DyCoke(dycoke_l=1, dycoke_p=0.7),
        Fading(),
    ],
    ids=repr,
)
def test_continued_logits_are_those_of_a_whole_prefill(case: running.FamilyCase, method) -> None:
    if method.positions == "renumbered" and case.family.mrope:
        pytest.skip("positions of more than one number are kept")
    decoder, budget = case.family.decoder, Budget("tokens", 0.4)
    other = replace(case, prompt=case.family.prompt(case.video, OTHER, sample="kit"))
    whole, tokens, expected = running.generate(other, lent.start(method, other.prompt.layout, budget))
    prefix = None
    for one in (case, other, case, other):
        layout = one.prompt.layout
        engine = SharedPrefix(decoder, lent.start(method, layout, budget), layout, prefix)
        logits, _, trace = running.generate(one, engine, forced=tokens)
        assert engine.continued == (prefix is not None)
        prefix = engine.prefix
        assert prefix is not None and [k.shape[-2] for k, _ in prefix.layers] == [
            entered + int(layout.video[-1]) + 1 - layout.grid.tokens
            for entered in trace.entering[: shared_layers(engine.run, layout, len(decoder))]
        ]
    assert float((logits - whole).abs().max()) < 1e-5
    assert torch.equal(logits.argmax(-1), whole.argmax(-1))
    for name in (
        "layers", "video", "text", "entering", "mlp", "asked", "reads", "projected", "decoded", "visible",
    ):  # fmt: skip
        assert getattr(trace, name) == getattr(expected, name), name
    assert bool(trace.visible) == bool(engine.run.places.decoding)
    assert torch.equal(trace.reason, expected.reason) and trace.retention() == expected.retention()
    assert trace.prefill_seconds == 0.0 < expected.prefill_seconds


@pytest.mark.parametrize(
    ("method", "times"), [(Early(), 3), (Naming(), 1), (STSimDiff(layer=1), 1)], ids=repr
)
def test_a_run_that_names_what_it_remembers_is_asked_once_at_its_input(method, times, monkeypatch) -> None:
    case = checks.miniature("llava_video")
    layout, prefix, asked = case.prompt.layout, None, []
    at_input = lent.LentRun.at_input
    monkeypatch.setattr(
        lent.LentRun, "at_input", lambda run, tokens: asked.append(run) or at_input(run, tokens)
    )
    for _ in range(3):
        run = lent.start(method, layout, Budget("tokens", 0.4))
        engine = SharedPrefix(case.family.decoder, run, layout, prefix)
        running.generate(case, engine)
        prefix = engine.prefix
    assert engine.continued and len(asked) == times


def test_the_kit_finds_a_run_that_names_too_little() -> None:
    class ForgetsRun(_EarlyRun):
        """It goes by what it remembers of its input, and does not say so."""

        input_state = ()
        turned = False

        def at_input(self, tokens):
            self.turned = True
            return super().at_input(tokens)

        def before_layer(self, layer, tokens, attention):
            score = attention.mean(0) * (-1 if self.turned else 1)
            return Selection.from_mask(top(score, len(tokens) // 2), Reason.ALL)

    class Forgets(Early):
        def start(self, layout, budget):
            return ForgetsRun(layout, budget)

    with pytest.raises(AssertionError, match="input_state"):
        checks.question_is_not_read(CompressorCase(Forgets()))


def test_another_beginning_is_prefilled_whole() -> None:
    case = checks.miniature("llava_video")
    layout, decoder = case.prompt.layout, case.family.decoder
    engine = SharedPrefix(decoder, Run(), layout)
    running.generate(case, engine)
    embeds = case.prompt.inputs["inputs_embeds"].clone()
    embeds[0, 0] += 1
    inputs = {**case.prompt.inputs, "inputs_embeds": embeds}
    changed = replace(case, prompt=replace(case.prompt, inputs=inputs))
    again = SharedPrefix(decoder, Run(), layout, engine.prefix)
    logits, tokens, _ = running.generate(changed, again)
    assert not again.continued
    assert torch.equal(logits, running.generate(changed, Run(), forced=tokens)[0])


def test_a_question_that_shares_fewer_layers_is_prefilled_whole() -> None:
    """A run that reads more tokens than stand behind the video of a short prompt: that layer's reads differ then."""
    case = checks.miniature("llava_video")
    longer = replace(case, prompt=case.family.prompt(case.video, OTHER, sample="kit"))
    behind = [one.prompt.layout.length - int(one.prompt.layout.video[-1]) - 1 for one in (case, longer)]
    assert behind[0] < behind[1]

    class Many(Early):
        def start(self, layout, budget):
            one = _EarlyRun(layout, budget)
            one.places = Places(True, frozenset({2}), attention=frozenset({1}), queries=behind[1])
            return one

    decoder, method, prefix = case.family.decoder, Many(), None
    for one, layers, continued in ((longer, 2, False), (case, 1, False), (case, 1, True), (longer, 2, False)):
        layout = one.prompt.layout
        expected, tokens, _ = running.generate(one, lent.start(method, layout, Budget("tokens", 0.4)))
        engine = SharedPrefix(decoder, lent.start(method, layout, Budget("tokens", 0.4)), layout, prefix)
        logits, _, _ = running.generate(one, engine, forced=tokens)
        prefix = engine.prefix
        assert prefix is not None and (len(prefix.layers), engine.continued) == (layers, continued)
        assert float((logits - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_keys_that_depend_on_the_prompts_length_are_not_shared(kind, monkeypatch) -> None:
    case = checks.miniature("llava_video")
    decoder, config = case.family.decoder, copy.deepcopy(case.family.text_config)
    half = config.hidden_size // config.num_attention_heads // 2
    short = {"short_factor": [1.0] * half, "long_factor": [4.0] * half}
    other = replace(case, prompt=case.family.prompt(case.video, OTHER, sample="kit"))
    between = case.prompt.layout.length + 1
    assert between < other.prompt.layout.length
    config.max_position_embeddings = between
    config.rope_parameters = {
        "rope_type": kind,
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": between,
        **(short if kind == "longrope" else {}),
    }
    rotary = type(decoder.module.rotary_emb)(config)
    monkeypatch.setitem(decoder.module._modules, "rotary_emb", rotary)
    whole, tokens, _ = running.generate(other, Run())
    prefix = None
    for one, continued in ((case, False), (case, True), (other, False)):
        engine = SharedPrefix(decoder, Run(), one.prompt.layout, prefix)
        logits, _, _ = running.generate(one, engine, forced=tokens)
        assert engine.continued is continued
        prefix = engine.prefix
    assert float((logits - whole).abs().max()) < 1e-5
    assert prefix is None


def test_what_cannot_be_shared_leaves_no_prefix() -> None:
    case = checks.miniature("llava_video")
    layout = case.prompt.layout

    class Within(Early):
        def start(self, layout, budget):
            one = _EarlyRun(layout, budget)
            one.places = replace(one.places, before=one.places.before | {1})
            return one

    for method in (FrameFusion(), Within()):
        engine = SharedPrefix(case.family.decoder, lent.start(method, layout, Budget("tokens", 0.5)), layout)
        running.generate(case, engine)
        assert engine.prefix is None


def test_who_reads_no_question() -> None:
    says = {name for name in BUILTIN if name != "chain" and not resolve(name).reads_question}
    assert says >= FREE
    assert {name for name in BUILTIN if name != "chain"} - says == {"sparsevlm"}
    assert Chain(methods=("evs", "sparsevlm")).reads_question
    assert not Chain(methods=("evs", "sttm")).reads_question


@dataclass(frozen=True)
class Reader(ScoreCompressor):
    """Says that it reads nothing of the question, and goes by the number of words."""

    reads_question = False

    def score(self, tokens, layout):
        return tokens.features[:, layout.length % tokens.features.shape[1]]


class _Peeking(Run):
    places = Places(input=True)

    def __init__(self, layout, budget) -> None:
        self.layout, self.count = layout, budget.keep(layout.grid.tokens, layout.layers)

    def at_input(self, tokens):
        text = tokens.view.states(self.layout.places("after")).mean(0)
        return Selection.from_mask(top(tokens.features @ text, self.count), Reason.IMPORTANT)


@dataclass(frozen=True)
class Peeks(RandomTokens):
    """Says that it reads nothing of the question, and reads the hidden states of the text."""

    def start(self, layout, budget):
        return _Peeking(layout, budget)


def test_the_kit_proves_what_is_declared() -> None:
    check = checks.CHECKS["reads no question"]
    for method in (RandomTokens(), UniformFrames(), STTM(), FastV(), Early()):
        check(checks.CompressorCase(method))
    with pytest.raises(checks.CheckSkipped, match="selects by what it reads in the first layer"):
        check(checks.CompressorCase(FrameFusion()))
    with pytest.raises(checks.CheckSkipped, match="reads the question"):
        check(checks.CompressorCase(SparseVLM()))
    for liar in (Reader(), Peeks()):
        with pytest.raises(AssertionError, match="reads_question"):
            check(checks.CompressorCase(liar))


LINES = (
    "compressor=none budget.retention=1",
    "compressor=random budget.retention=0.3",
    "compressor=sttm budget.retention=0.5",
    "compressor=fastv budget.retention=0.5",
    "compressor=sparsevlm budget.retention=0.5",
)


def test_rows_say_which_prompts_were_prefilled_whole(tmp_path: Path, data: Path, monkeypatch) -> None:
    held = []
    sample = session.Session.answer

    def answer(self, arm, question, asked):
        assert self._left is None or self._left.video is asked.video
        held.append(arm.id)
        return sample(self, arm, question, asked)

    monkeypatch.setattr(session.Session, "answer", answer)
    settings, arms = prepared(tmp_path / "with", data, *LINES)
    run.run_arms(settings, arms)
    # An arm is through with a video before the next one begins: one prefix lives at a time.
    assert [arm for arm, before in zip(held, [None, *held], strict=False) if arm != before] == [
        arm.id for arm in arms
    ] * 2
    alone, same = prepared(tmp_path / "without", data, *LINES, reuse_prefix="false")
    run.run_arms(alone, same)
    assert [arm.id for arm in arms] == [arm.id for arm in same]
    for arm in arms:
        rows, whole = stored(settings, arm), stored(alone, arm)
        firsts = [row["video"] for row in rows].index
        for number, (row, other) in enumerate(zip(rows, whole, strict=True)):
            first = arm.method == "sparsevlm" or number == firsts(row["video"])
            assert row["prefill"] == ("whole" if first else "continued") and other["prefill"] == "whole"
            times = {"decode", "preprocess", "vision"}
            assert set(row["times"]) >= times and (set(row["times"]) == times) == (not first)
            drop = {"times": None, "prefill": None}
            assert row | drop == other | drop
        checked_answers(settings.folder / arm.folder)


def test_a_method_is_started_again_only_where_it_is_asked_again(
    tmp_path: Path, data: Path, monkeypatch
) -> None:
    started, start = [], lent.start
    monkeypatch.setattr(lent, "start", lambda *args, **kwargs: started.append(1) or start(*args, **kwargs))
    settings, arms = prepared(tmp_path, data, "compressor=random budget.retention=0.3", LINES[3])
    for arm, every in zip(arms, (False, True), strict=True):
        started.clear()
        run.run_arms(settings, [arm])
        rows = stored(settings, arm)
        assert {row["prefill"] for row in rows} == {"whole", "continued"}
        assert len(started) == (len(rows) if every else len({row["video"] for row in rows}))


def test_a_prompt_that_begins_otherwise_is_answered_by_a_run_of_its_own(
    tmp_path: Path, data: Path, monkeypatch
) -> None:
    settings, arms = prepared(tmp_path / "with", data, *LINES[:2])
    watched, sample = [], Guard.sample
    monkeypatch.setattr(prefix.Prefix, "begins", lambda *args: False)
    monkeypatch.setattr(
        Guard, "sample", lambda self, *args, **given: watched.append(1) or sample(self, *args, **given)
    )
    run.run_arms(settings, arms)
    rows = [stored(settings, arm) for arm in arms]
    assert all(row["prefill"] == "whole" and row["error"] is None for row in chain(*rows))
    # All tokens ask no method in any prompt, so that only their first of a video has one to watch.
    assert len(watched) == len(rows[1]) + len({row["video"] for row in rows[0]})
    alone, same = prepared(tmp_path / "without", data, *LINES[:2], reuse_prefix="false")
    run.run_arms(alone, same)
    drop = {"times": None}
    for arm, found in zip(same, rows, strict=True):
        assert [row | drop for row in found] == [row | drop for row in stored(alone, arm)]


HOOKED = []
"""Modules that :class:`Hooking` puts a hook on, and leaves it there."""


@dataclass(frozen=True)
class Hooking(ScoreCompressor):
    reads_question = False

    def start(self, layout, budget):
        for module in HOOKED:
            module.register_forward_hook(lambda module, args, output: -3 * output)
        return super().start(layout, budget)

    def score(self, tokens, layout):
        return tokens.features.norm(dim=1)


class _OnceRun(Run):
    places = Places(input=True)
    finished = False

    def at_input(self, tokens):
        self.finished = True
        return Selection.from_mask(top(tokens.features.norm(dim=1), len(tokens) // 5), Reason.ALL)


@dataclass(frozen=True)
class Once(RandomTokens):
    def start(self, layout, budget):
        return _OnceRun()


def test_what_a_method_at_fault_left_answers_no_other_question(
    tmp_path: Path, data: Path, monkeypatch
) -> None:
    line = f"compressor=custom compressor._target_={__name__}.Hooking budget.retention=0.2"
    settings, (arm,) = prepared(tmp_path, data, line, max_failures=100)
    encode = session.Session.encode

    def encoded(self, path, arms):
        monkeypatch.setitem(globals(), "HOOKED", [self.family.decoder.layers[0].mlp])
        return encode(self, path, arms)

    monkeypatch.setattr(session.Session, "encode", encoded)
    with pytest.raises(run.RunFailed):
        run.run_arms(settings, [arm])
    errors = [row["error"] for row in stored(settings, arm)]
    assert len(errors) == 10 and all("left a hook on" in error["message"] for error in errors)


def test_a_run_that_has_finished_selects_from_another_prompt_too(
    tmp_path: Path, data: Path, monkeypatch
) -> None:
    monkeypatch.setattr(prefix.Prefix, "begins", lambda *args: False)
    line = f"compressor=custom compressor._target_={__name__}.Once budget.retention=0.2"
    settings, (arm,) = prepared(tmp_path, data, line)
    run.run_arms(settings, [arm])
    kept = {row["retention_tokens"] for row in stored(settings, arm)}
    assert len(kept) == 1 and kept.pop() < 0.21


def test_equal_answers_to_a_question_are_scored_once(tmp_path: Path, data: Path, monkeypatch) -> None:
    scored, judge = [], session.judge

    def counted(task, question, answer):
        scored.append((question.id, answer))
        return judge(task, question, answer)

    monkeypatch.setattr(session, "judge", counted)
    settings, arms = prepared(tmp_path, data, *LINES[:3])
    run.run_arms(settings, arms)
    given = {(row["id"], row["answer"]) for arm in arms for row in stored(settings, arm)}
    assert sorted(scored) == sorted(given)
    for arm in arms:
        checked_answers(settings.folder / arm.folder)


def test_lines_without_the_field_are_read(tmp_path: Path, data: Path) -> None:
    settings, (arm,) = prepared(tmp_path, data, LINES[1])
    run.run_arms(settings, [arm])
    file = settings.folder / arm.folder / "answers.jsonl"
    rows = json_lines(file)
    for row in rows:
        del row["prefill"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(checked_answers(file.parent)) == len(rows)
    assert run.run_arms(settings, [arm]) == 0


def test_a_failed_question_spoils_no_other(tmp_path: Path, data: Path, monkeypatch) -> None:
    settings, (arm,) = prepared(tmp_path, data, LINES[0], max_failures=50)
    answer, seen = models.base.Family.answer, []

    def failing(self, prompt, max_new_tokens):
        seen.append(prompt)
        if len(seen) in (1, 3):
            raise RuntimeError("a bad question")
        return answer(self, prompt, max_new_tokens)

    monkeypatch.setattr(models.base.Family, "answer", failing)
    with pytest.raises(run.RunFailed):
        run.run_arms(settings, [arm])
    rows = stored(settings, arm)
    assert [row["error"] is not None for row in rows[:5]] == [True, False, True, False, False]
    assert [row.get("prefill") for row in rows[:5]] == [None, "whole", None, "continued", "continued"]
    monkeypatch.undo()
    settings, (arm,) = prepared(tmp_path, data, LINES[0], retry_failed=True)
    assert run.run_arms(settings, [arm]) == 2
    assert [row["prefill"] for row in checked_answers(settings.folder / arm.folder)][:3] == [
        "whole",
        "whole",
        "continued",
    ]


def test_memory_that_runs_out_frees_the_prefix(tmp_path: Path, data: Path, monkeypatch) -> None:
    settings, (arm,) = prepared(tmp_path, data, LINES[0])
    answer, tries = models.base.Family.answer, []

    def short(self, prompt, max_new_tokens):
        tries.append(prompt)
        if len(tries) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return answer(self, prompt, max_new_tokens)

    monkeypatch.setattr(models.base.Family, "answer", short)
    run.run_arms(settings, [arm])
    assert [row["prefill"] for row in stored(settings, arm)][:3] == ["whole", "whole", "continued"]


def test_sampling_is_by_video() -> None:
    case = checks.miniature("llava_video")
    method, budget = RandomTokens(), Budget("tokens", 0.3)
    kept = []
    for sample in ("a.mp4", "a.mp4", "b.mp4"):
        layout = case.family.prompt(case.video, OTHER, sample=sample).layout
        one = replace(case, prompt=case.family.prompt(case.video, OTHER, sample=sample))
        with Compression(case.family.decoder, lent.start(method, layout, budget), layout) as trace:
            case.family.answer(one.prompt, 1)
        kept.append(trace.stages[0].kept.tolist())
    assert kept[0] == kept[1] != kept[2]
