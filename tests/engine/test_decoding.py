"""Cached keys of the video that a method hides or removes while an answer is decoded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stsimdiff.compressors.base import Hidden, Places
from stsimdiff.engine import Compression
from stsimdiff.errors import MethodFault
from stsimdiff.models.kit import running
from stsimdiff.models.kit.running import NEW_TOKENS
from stsimdiff.tokens import Selection

DROPPED = 5


class Hiding(running.ScriptedRun):
    """Drops the first tokens before layer 1, then hides others from layer 1 on while decoding."""

    def __init__(self, index: dict[int, list[int]], removed: bool = False) -> None:
        super().__init__({("before", 1): set(range(DROPPED))})
        self.places = Places(before=frozenset({1}), decoding=frozenset({1}), watched=frozenset({0}))
        self.index, self.removed, self.given = index, removed, []

    def at_token(self, layer: int, step: int, cached: Tensor, attention: Tensor) -> Hidden | None:
        self.given.append((layer, step, cached, attention))
        index = self.index.get(step)
        return None if index is None else Hidden(torch.tensor(index), self.removed)


def reference(
    case: running.FamilyCase, tokens: Tensor, hidden: dict[int, list[int]]
) -> tuple[Tensor, list[Tensor]]:
    """Logits of a stock model with masks in its layers from 1 on, and layer 0's attention of each generated token.

    ``hidden``: by step what it does not see; what is dropped in the prefill is masked for all of them.
    """
    layout, decoder, handles, rows = case.prompt.layout, case.family.decoder, [], []
    seen = 0

    def begin(module, args, kwargs):
        nonlocal seen
        seen += layout.length if seen == 0 else 1

    def hook(layer, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        count, step = states.shape[1], seen - layout.length - 1
        gone = [*range(DROPPED), *(hidden.get(step, []) if step >= 0 else [])]
        allowed = torch.ones(count, seen, dtype=torch.bool).tril(seen - count)
        allowed[:, layout.video[gone]] = False
        own = torch.arange(seen - count, seen)
        allowed[torch.arange(count), own] = True
        mask = torch.zeros(count, seen).masked_fill(~allowed, torch.finfo(torch.float32).min)
        return args, {**kwargs, "attention_mask": mask[None, None]}

    handles.append(decoder.module.register_forward_pre_hook(begin, with_kwargs=True))
    handles += [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in decoder.layers[1:]]
    handles.append(
        decoder.layers[0].self_attn.register_forward_hook(lambda m, a, out: rows.append(out[1][0, :, -1]))
    )
    logits = running.generate(case, forced=tokens)[0]
    for handle in handles:
        handle.remove()
    return logits, rows[1:]


STEPS = {0: [5, 9, 14], 2: [6]}


@pytest.mark.parametrize("removed", [False, True], ids=["hidden", "removed"])
def test_hiding_and_removing_equal_masking(eager_case: running.FamilyCase, removed: bool) -> None:
    run, layout = Hiding(STEPS, removed), eager_case.prompt.layout
    logits, tokens, trace = running.generate(eager_case, run)
    # Hidden for one token, removed from it on.
    masks = {0: STEPS[0], 1: STEPS[0], 2: STEPS[0] + STEPS[2]} if removed else STEPS
    expected, rows = reference(eager_case, tokens, masks)
    scale = float(logits.abs().max())
    assert float((logits - expected).abs().max()) / scale < eager_case.tolerance
    blind = reference(eager_case, tokens, {})[0]
    assert float((logits - blind).abs().max()) / scale > 10 * eager_case.tolerance, "blind"
    count, layers = layout.grid.tokens, len(eager_case.family.decoder)
    assert [(layer, step) for layer, step, _, _ in run.given] == [(1, step) for step in range(NEW_TOKENS - 1)]
    for step, (_, _, cached, attention) in enumerate(run.given):
        gone = set(range(DROPPED)) | (set(masks.get(step - 1, [])) if removed and step else set())
        assert cached.tolist() == [i for i in range(count) if i not in gone]
        # Layer 0 has all keys; a token generated before stands after the prompt.
        assert attention.shape[1] == count
        assert torch.allclose(attention, rows[step][:, layout.video], atol=1e-5)
    lost = [len(masks.get(step, [])) for step in range(NEW_TOKENS - 1)]
    each = [(count + (layers - 1) * (count - DROPPED - out)) / layers for out in lost]
    assert trace.visible == pytest.approx(each)
    assert trace.kv_kept == pytest.approx(sum(each) / len(each) / count)
    assert trace.final == count - DROPPED and trace.decoding_seconds > 0


def test_removing_shortens_the_caches(eager_case: running.FamilyCase) -> None:
    held = []
    hook = eager_case.family.decoder.module.register_forward_pre_hook(
        lambda m, a, kwargs: held.append(kwargs["past_key_values"]), with_kwargs=True
    )
    running.generate(eager_case, Hiding(STEPS, removed=True))
    hook.remove()
    length = eager_case.prompt.layout.length + NEW_TOKENS - 1
    lengths = [layer.keys.shape[-2] for layer in held[0].layers]
    assert lengths == [length] + [length - DROPPED - 4] * (len(lengths) - 1)


def test_acting_without_hiding_changes_no_bit(eager_case: running.FamilyCase) -> None:
    quiet, _, trace = running.generate(eager_case, Hiding({}))
    plain = running.generate(eager_case, running.ScriptedRun({("before", 1): set(range(DROPPED))}))
    assert torch.equal(quiet, plain[0])
    assert plain[2].kv_kept is None and plain[2].visible == []
    assert 0 < trace.kv_kept < 1


def test_mistakes_are_named(eager_case: running.FamilyCase) -> None:
    def generate(answer):
        class Wrong(Hiding):
            def at_token(self, layer, step, cached, attention):
                return answer(cached)

        running.generate(eager_case, Wrong({}))

    with pytest.raises(
        TypeError, match="Wrong, before layer 1 while decoding, returned a Tensor; expected Hidden"
    ):
        generate(lambda cached: cached[:1])
    with pytest.raises(ValueError, match="expected raster indices"):
        generate(lambda cached: Hidden(torch.tensor([0.5])))
    with pytest.raises(ValueError, match="not in this layer's cache"):
        generate(lambda cached: Hidden(torch.tensor([0])))  # dropped in the prefill
    with pytest.raises(MethodFault, match="wrote into cached"):
        generate(lambda cached: Hidden(cached.zero_()[:0]))

    class Silent(running.ScriptedRun):
        places = Places(decoding=frozenset({1}))

        def __init__(self):
            pass

        def _drop(self, *given) -> Selection | None:
            return None

    with pytest.raises(TypeError, match="announces a place before layer 1 while decoding but does not act"):
        running.generate(eager_case, Silent())
    with pytest.raises(ValueError, match="does not exist"):
        wrong = Hiding({})
        wrong.places = Places(watched=frozenset({99}))
        Compression(eager_case.family.decoder, wrong, eager_case.prompt.layout)
