"""What every model family must keep, as functions that raise ``AssertionError``: the contract, executable.

pytest is not needed here; the plug-in around these checks is ``stsimdiff.models.kit``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from stsimdiff.errors import CheckSkipped, ConfigError
from stsimdiff.models.base import LoadOptions
from stsimdiff.models.kit.running import (
    NEW_TOKENS,
    TEXT,
    FamilyCase,
    ScriptedRun,
    generate,
    masked,
    synthetic_frames,
)
from stsimdiff.tokens import Selection, VideoTokens
from stsimdiff.trace import Trace
from stsimdiff.video import Frames

VISIBLE = 10
"""A drop must change the logits by so many times the tolerance, or the comparison would be blind."""
DROPS: dict[str, dict[tuple[str, int], float]] = {
    "input": {("input", 0): 0.7},
    "before layer 1": {("before", 1): 0.5},
    "before layer 2": {("before", 2): 0.5},
    "before the last layer": {("before", -1): 0.9},
    "inside layer 0": {("between", 0): 0.5},
    "inside layer 1": {("between", 1): 0.5},
    "inside layer 2": {("between", 2): 0.5},
    "inside the last layer": {("between", -1): 0.5},
    "at four places": {("input", 0): 0.2, ("before", 1): 0.3, ("between", 1): 0.2, ("before", -1): 0.4},
}
"""Where tokens are dropped, and which share of all of them; layer -1 is the last."""


# Checks of the prompt and the tower ----------------------------------------------------------------------------


def encoding_is_deterministic(case: FamilyCase) -> None:
    """The same frames give the same features and grid, and other frames give others."""
    again = case.family.encode(case.frames)
    assert again.grid == case.video.grid and torch.equal(again.features, case.video.features), (
        "encode() gave other features for the same frames"
    )
    other = case.family.encode(synthetic_frames(6, seed=1))
    assert other.features.shape == case.video.features.shape, "the grid depends on more than the frames' size"
    assert not torch.equal(other.features, case.video.features), "encode() does not look at the frames"
    assert case.video.features.shape[0] == case.video.grid.tokens, (
        f"{case.video.features.shape[0]} features for a grid of {case.video.grid.tokens}"
    )
    assert bool(torch.isfinite(case.video.features).all()), "features hold NaN or infinite values"


def later_frames_are_later_tokens(case: FamilyCase) -> None:
    """Features are in raster order: other last frames change the last tokens more than the first ones."""
    pixels = case.frames.pixels.copy()
    pixels[len(pixels) // 2 :] = 255 - pixels[len(pixels) // 2 :]
    changed = case.family.encode(Frames(pixels, case.frames.indices, case.frames.total, case.frames.fps))
    change = (changed.features - case.video.features).float().abs().mean(1)
    first, last = change[: case.video.grid.per_frame].mean(), change[-case.video.grid.per_frame :].mean()
    assert last > first, "the tokens of the last frame are not the last ones: features are in raster order"


def video_places_hold_video_features(case: FamilyCase) -> None:
    """``layout`` is right: its places of the decoder's input hold the features in order, and its length is right."""
    layout, seen = case.prompt.layout, []
    decoder = case.family.decoder

    def catch(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(kwargs.get("inputs_embeds"))

    handle = decoder.module.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        generate(case)
    finally:
        handle.remove()
    embeds = seen[0]
    assert embeds is not None, "decoder.module is not called with inputs_embeds: it is not the language model"
    assert embeds.shape[:2] == (1, layout.length), (
        f"the decoder gets {tuple(embeds.shape[:2])} tokens, the layout says (1, {layout.length})"
    )
    assert bool((layout.video[1:] > layout.video[:-1]).all()), "layout.video is not ascending"
    features = embeds[0, layout.video.to(embeds.device)]
    assert torch.equal(features, case.video.features.to(features)), (
        "the places of layout.video do not hold the video's features in raster order"
    )
    assert layout.layers == len(decoder) == len(decoder.layers), "layout.layers is not the decoder's depth"
    assert layout.grid == case.video.grid and layout.sample == "kit", "layout.grid or layout.sample is wrong"
    assert layout.text > 0, "the prompt holds no text"
    assert decoder.mrope == case.family.mrope, "the decoder and the family contradict each other on mrope"


def the_picture_fits_the_grid(case: FamilyCase) -> None:
    """The cells that overlays are drawn from are tokens of the grid, and its rows in time cover the frames."""
    grid, picture = case.video.grid, case.family.picture(case.video.grid)
    last = (picture.height - 1) * picture.stride + picture.width
    assert last <= grid.per_frame, f"{picture} has cells beyond the {grid.per_frame} tokens of a row in time"
    count = len(case.frames.indices)
    assert -(-count // picture.frames) == grid.frames, (
        f"{grid.frames} rows in time of {picture.frames} frames each for {count} frames"
    )


def the_sizes_are_the_models(case: FamilyCase) -> None:
    """``shape``, from which FLOPs are counted, has the decoder's depth and gives the grid of the video's size."""
    shape = case.family.shape
    if shape is None:
        raise CheckSkipped("the family says no sizes: the cost of its vision tower is not counted")
    assert shape.decoder.layers == len(case.family.decoder), (
        "shape.decoder has another depth than the decoder"
    )
    count, height, width = case.frames.pixels.shape[:3]
    assert shape.grid(count, height, width) == case.video.grid, (
        f"shape.grid says {shape.grid(count, height, width)}, encode() gave {case.video.grid}"
    )
    assert shape.tower_work(case.video.grid).embedded >= case.video.grid.tokens // 2, (
        "shape.tower_work misses patches"
    )


def the_question_is_in_the_prompt(case: FamilyCase) -> None:
    """Another question gives another answer's logits."""
    other = case.family.prompt(case.video, TEXT.replace("cat", "horse"), sample="kit")
    logits = generate(case)[0]
    assert not torch.equal(generate(FamilyCase(case.family, case.frames, case.video, other))[0], logits), (
        "the question's text has no influence"
    )


def the_questions_tokens_are_known(case: FamilyCase) -> None:
    """``layout.asked`` are the places of the tokens that hold the question's text, and of no other text."""
    layout, family = case.prompt.layout, case.family
    if layout.asked is None:
        raise CheckSkipped("the family does not say where the question is: see worded and Prompt.asking")
    assert layout.question == TEXT, "layout.question is not the question's text: see Prompt.asking"
    if "input_ids" in case.prompt.inputs:
        ids = case.prompt.inputs["input_ids"][0].cpu()[layout.asked]
    else:
        table = family.model.get_input_embeddings().weight
        rows = case.prompt.inputs["inputs_embeds"][0].to(table)[layout.asked]
        ids = torch.stack([(table - row).abs().sum(1).argmin() for row in rows])
    text = family.tokenizer.decode(ids).strip()
    assert text == TEXT, f"the tokens of layout.asked hold {text!r}, the question is {TEXT!r}"


def placeholders_in_a_question_are_refused(case: FamilyCase) -> None:
    """A question that holds the text of a video token raises ``ValueError``."""
    placeholders = case.family.placeholders
    assert placeholders and all(isinstance(text, str) and text for text in placeholders), (
        f"placeholders is {placeholders!r}"
    )
    for placeholder in placeholders:
        try:
            case.family.prompt(case.video, f"what is {placeholder}?")
        except ValueError as error:
            assert placeholder in str(error), f"the message does not name {placeholder!r}: {error}"
        else:
            raise AssertionError(f"prompt() takes a question that holds {placeholder!r}")


def signals_have_the_grid(case: FamilyCase) -> None:
    """The tower's signals: one score and one key a head for each token; reading them changes no feature."""
    modules = [value for value in vars(case.family).values() if isinstance(value, nn.Module)]
    before = [_state(module) for module in modules]
    try:
        encoded = case.family.encode(case.frames, signals=True)
        layers = case.family.encode(case.frames, signals=(-1, 0))
    except ConfigError as error:
        raise CheckSkipped(f"no signals of the tower: {error}") from error
    signals, count = encoded.signals, case.video.grid.tokens
    assert case.video.signals is None, "signals were read without being asked for"
    assert signals is not None, "encode(signals=True) gave no signals; raise ConfigError where there are none"
    assert torch.equal(encoded.features, case.video.features), "reading the tower changes the features"
    assert signals.received.shape == (count,) and signals.received.dtype == torch.float32, (
        f"received is {tuple(signals.received.shape)} of {signals.received.dtype}, expected ({count},) of float32"
    )
    assert bool((signals.received >= 0).all()), "attention received is negative"
    assert signals.received.float().std() > 0, "every token receives the same attention"
    assert signals.keys.ndim == 3 and signals.keys.shape[0] == count, (
        f"keys is {tuple(signals.keys.shape)}, expected ({count}, heads, width)"
    )
    assert bool(torch.isfinite(signals.keys).all()), "keys hold NaN or infinite values"
    for layer in layers.signals.layers if layers.signals else ():
        for name in ("received", "keys", "hidden", "frames"):
            values, rows = getattr(layer, name), case.video.grid.frames if name == "frames" else count
            assert len(values) == rows and bool(torch.isfinite(values).all()), (
                f"{name} of layer {layer.number} is {tuple(values.shape)}, expected ({rows}, ...), finite"
            )
    named = [layer.number for layer in layers.signals.layers] if layers.signals else []
    assert named == [-1, 0], f"encode(signals=(-1, 0)) gave the layers {named} of the tower"
    assert [_state(module) for module in modules] == before, "encode(signals=True) left something behind"
    prompt = case.family.prompt(encoded, TEXT, sample="kit")
    assert prompt.layout.vision is signals, "prompt() does not hand the signals on as layout.vision"


def another_checkpoint_is_refused(case: FamilyCase) -> None:
    """A folder of another model raises ``ConfigError`` and so does one that is not there."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(
            json.dumps({"model_type": "another_model"}), encoding="utf-8"
        )
        for path in (folder, str(Path(folder) / "nowhere")):
            try:
                type(case.family).load(path, LoadOptions(device="cpu"))
            except ConfigError:
                continue
            raise AssertionError(f"load() takes a folder that is of no family: {path}")


# Checks of the engine on the family's decoder ------------------------------------------------------------------


def keep_all_is_bit_identical(case: FamilyCase) -> None:
    """A compression that keeps every token, and reads attention, changes no bit of any logit."""
    stock, tokens, _ = generate(case)
    logits, again, trace = keeping_all(case)
    assert torch.equal(stock, logits) and torch.equal(tokens, again), (
        f"keeping all tokens changes the logits by up to {float((stock - logits).abs().max()):.2g}"
    )
    assert trace is not None
    assert trace.entering == trace.mlp == [case.video.grid.tokens] * len(case.family.decoder)


def keeping_all(case: FamilyCase) -> tuple[Tensor, Tensor, Trace | None]:
    """What the model generates (see :func:`generate`) while every token is kept at each kind of place."""
    layers = len(case.family.decoder)
    acted = (("input", 0), ("before", layers - 1), ("between", min(1, layers - 1)))
    places: dict[tuple[str, int], set[int]] = {place: set() for place in acted}
    return generate(case, ScriptedRun(places, attention=frozenset(range(min(3, layers)))))


def drops_of(case: FamilyCase, name: str) -> dict[tuple[str, int], set[int]]:
    """The raster indices that one of :data:`DROPS` takes out at each of its places; the same each time.

    Raises:
        CheckSkipped: where the decoder has too few layers.
    """
    layers, count = len(case.family.decoder), case.video.grid.tokens
    if any(at >= layers for _, at in DROPS[name]):
        raise CheckSkipped(f"the decoder has {layers} layers")
    shares = {(place, at % layers): share for (place, at), share in DROPS[name].items()}
    generator = torch.Generator().manual_seed(0)
    return {
        place: set(torch.randperm(count, generator=generator)[: int(count * share)].tolist())
        for place, share in shares.items()
    }


def dropping_equals_masking(case: FamilyCase, name: str) -> None:
    """Dropped tokens have no influence from their place on, on the prefill and on each generated token."""
    count, drops = case.video.grid.tokens, drops_of(case, name)
    logits, tokens, trace = generate(case, ScriptedRun(drops))
    expected, scale = masked(case, drops, tokens), float(logits.abs().max())
    off = (logits - expected).abs().amax(1) / scale
    assert float(off.max()) < case.tolerance, (
        f"dropping differs from masking by {float(off.max()):.2g} of the largest logit, first at new token "
        f"{int((off >= case.tolerance).nonzero()[0])} of {NEW_TOKENS}"
    )
    if name != "inside the last layer":  # nothing reads the video tokens after the last layer's attention
        change = float((logits - masked(case, {}, tokens)).abs().max()) / scale
        assert change > VISIBLE * case.tolerance, f"the drop changes the logits by {change:.2g} only: blind"
    assert trace.final == count - len(set().union(*drops.values()))


def traces_count_the_tokens(case: FamilyCase) -> None:
    """The trace says how many video tokens entered each layer and each MLP."""
    layers, count = len(case.family.decoder), case.video.grid.tokens
    if layers < 2:
        raise CheckSkipped("the decoder has one layer")
    first, second = set(range(count // 4)), set(range(count // 4, count // 2))
    _, _, trace = generate(case, ScriptedRun({("input", 0): first, ("between", 0): second}))
    left = count - len(first), count - len(first) - len(second)
    assert trace.entering == [left[0]] + [left[1]] * (layers - 1), trace.entering
    assert trace.mlp == [left[1]] * layers, trace.mlp
    assert (trace.video, trace.text, trace.final) == (count, case.prompt.layout.text, left[1])


def nothing_is_left_behind(case: FamilyCase) -> None:
    """After a compression, also one that failed, the model is as it was: no hook, no other function, same logits."""
    stock, _, _ = generate(case)
    before = _state(case.family.model)

    class FailingRun(ScriptedRun):
        def between(self, layer: int, tokens: VideoTokens, attention: Tensor | None) -> Selection:
            raise RuntimeError("a method that fails")

    last = len(case.family.decoder) - 1
    generate(case, ScriptedRun({("input", 0): {1}, ("between", last): {2}}, attention=frozenset({0, last})))
    assert _state(case.family.model) == before, "a compression left something on the model"
    with _expected(RuntimeError, "a method that fails"):
        generate(case, FailingRun({("input", 0): {1}, ("between", last): set()}, attention=frozenset({last})))
    assert _state(case.family.model) == before, "a compression that failed left something on the model"
    assert torch.equal(generate(case)[0], stock), "the model answers otherwise after a compression"


def answers_do_not_depend_on_earlier_ones(case: FamilyCase) -> None:
    """A sample's logits are the same after another sample, of another length, was answered."""
    stock, tokens, _ = generate(case)
    frames = synthetic_frames(2, seed=2)
    video = case.family.encode(frames)
    generate(FamilyCase(case.family, frames, video, case.family.prompt(video, "Another one?", sample="kit")))
    again, same, _ = generate(case)
    assert torch.equal(stock, again) and torch.equal(tokens, same), "an answer depends on the one before"
    assert isinstance(case.family.answer(case.prompt, NEW_TOKENS), str), "answer() gives no text"


@contextmanager
def _expected(kind: type[Exception], message: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        if message not in str(error):
            raise
        return
    raise AssertionError(f"expected {kind.__name__}: {message}")


def _state(model: nn.Module) -> list[tuple]:
    """What a hook, a function put on an instance or a probe would change."""
    return [
        (
            name,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            "forward" in vars(module),
            id(getattr(module, "config", None)),
        )
        for name, module in model.named_modules()
    ]


CHECKS: dict[str, Callable[[FamilyCase], None]] = {
    "encoding is deterministic": encoding_is_deterministic,
    "later frames are later tokens": later_frames_are_later_tokens,
    "video places hold video features": video_places_hold_video_features,
    "the picture fits the grid": the_picture_fits_the_grid,
    "the sizes are the model's": the_sizes_are_the_models,
    "the question is in the prompt": the_question_is_in_the_prompt,
    "the question's tokens are known": the_questions_tokens_are_known,
    "placeholders in a question are refused": placeholders_in_a_question_are_refused,
    "signals have the grid": signals_have_the_grid,
    "another checkpoint is refused": another_checkpoint_is_refused,
    "keep-all is bit-identical": keep_all_is_bit_identical,
    **{f"dropping equals masking: {name}": partial(dropping_equals_masking, name=name) for name in DROPS},
    "traces count the tokens": traces_count_the_tokens,
    "nothing is left behind": nothing_is_left_behind,
    "answers do not depend on earlier ones": answers_do_not_depend_on_earlier_ones,
}
"""Every check by its name, as it stands in pytest's output."""
