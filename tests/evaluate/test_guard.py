"""After each sample the model and the process are as before; what a method left is named, and other arms are right."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stsimdiff import compressors, models
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import ScoreCompressor, generator_for
from stsimdiff.engine import Compression, lent, process_state
from stsimdiff.errors import MethodFault
from stsimdiff.evaluate import guard as guard_module
from stsimdiff.evaluate.guard import Guard, WeightsChanged
from stsimdiff.models.base import LoadOptions
from stsimdiff.models.kit.running import TEXT, synthetic_frames

FAMILY: list[Any] = []
"""The loaded family, as a method could find it."""
COUNT = 0
TABLE: dict[int, int] = {}
BUDGET = Budget("tokens", 0.5)


@dataclasses.dataclass(frozen=True)
class Does(ScoreCompressor):
    """Does something besides scoring."""

    what: Any = None
    seen: list[int] = dataclasses.field(default_factory=list)
    on_class: ClassVar[dict[int, int]] = {}

    def score(self, tokens, layout):
        self.what(self)
        return tokens.features.norm(dim=1)


@pytest.fixture(scope="module", params=["qwen3_vl", "nvila"])
def asked(request, miniature):
    family = models.resolve(request.param).load(str(miniature(request.param)), LoadOptions("cpu", "float32"))
    FAMILY[:] = [family]
    return family, family.prompt(family.encode(synthetic_frames(4)), TEXT, sample="q"), Guard(family)


def answer(asked, compressor) -> str:
    family, prompt, guard = asked
    with guard.sample(compressor):
        run = lent.start(compressor, prompt.layout, BUDGET)
        with Compression(family.decoder, run, prompt.layout):
            return family.answer(prompt, 3)


def layer():
    return FAMILY[0].decoder.layers[1]


def halves(*arguments):
    return arguments[-1] * 0.5 if isinstance(arguments[-1], torch.Tensor) else None


def patch_class(self) -> None:
    stock = type(layer().mlp).forward
    type(layer().mlp).forward = lambda module, x: stock(module, x) * 0.5


def patch_instance(self) -> None:
    stock = layer().mlp.forward
    layer().mlp.forward = lambda x: stock(x) * 0.5


def counts(self) -> None:
    global COUNT
    COUNT += 1


def another_function(self) -> None:
    torch.nn.functional.silu = torch.nn.functional.relu


def another_backend(self) -> None:
    ALL_ATTENTION_FUNCTIONS.register("sdpa", lambda module, q, k, v, mask, **more: (q.transpose(1, 2), None))


GLOBAL = torch.nn.modules.module
MODEL = {
    "left a hook on model.*layers.1.mlp": lambda self: layer().mlp.register_forward_hook(halves),
    "left a hook on model.*layers.1 ": lambda self: layer().register_forward_pre_hook(lambda m, a: None),
    "left a hook on model.*q_proj": lambda self: layer().self_attn.q_proj.register_full_backward_hook(halves),
    "left a hook on .*global_forward_hooks": lambda self: GLOBAL.register_module_forward_hook(halves),
    "left a hook on .*global_forward_pre_hooks": lambda self: GLOBAL.register_module_forward_pre_hook(
        lambda m, a: None
    ),
    "added model.*layers.1.mlp.forward": patch_instance,
    "replaced .*MLP.forward": patch_class,
    "replaced model.*self_attn.scaling": lambda self: setattr(layer().self_attn, "scaling", 9.0),
    "replaced model.*variance_epsilon": lambda self: setattr(
        layer().input_layernorm, "variance_epsilon", 9.0
    ),
    "replaced model.*training": lambda self: FAMILY[0].model.train(),
    "config._attn_implementation_internal": lambda self: setattr(
        layer().self_attn.config, "_attn_implementation_internal", "eager"
    ),
    "replaced model.*_parameters.weight": lambda self: setattr(
        layer().mlp.up_proj, "weight", torch.nn.Parameter(layer().mlp.up_proj.weight.detach() * 2)
    ),
    "replaced model.*_modules.mlp": lambda self: setattr(layer(), "mlp", torch.nn.Identity()),
    "torch.nn.functional.silu": another_function,
    "ALL_ATTENTION_FUNCTIONS": another_backend,
}
PROCESS = {
    "torch's random state; draw from generator_for": lambda self: torch.rand(3),
    "numpy's random state; draw from generator_for": lambda self: np.random.rand(3),
    "Python's random state; draw from generator_for": lambda self: random.random(),
    "torch's random state": lambda self: torch.manual_seed(7),
    "the working folder": lambda self: os.chdir("/"),
    "an environment variable": lambda self: os.environ.update(PATH="/nowhere"),
    "numpy's handling of errors": lambda self: np.seterr(all="raise"),
    "torch's default dtype": lambda self: torch.set_default_dtype(torch.float64),
}
STATE = {
    r"self\.seen": lambda self: self.seen.append(1),
    r"self\.cache": lambda self: object.__setattr__(self, "cache", 1),
    r"Does\.on_class": lambda self: self.on_class.update({len(self.on_class): 1}),
    r"test_guard\.COUNT": counts,
    r"test_guard\.TABLE": lambda self: TABLE.update({len(TABLE): 1}),
}


@pytest.mark.parametrize("message", [*MODEL, *PROCESS])
def test_what_a_method_leaves_is_put_back_and_named(asked, message) -> None:
    plain = compressors.resolve("none")()
    expected, before = answer(asked, plain), process_state.read(process_state.EVERYTHING)
    with pytest.raises(MethodFault, match=rf"Does.*{message}"):
        answer(asked, Does((MODEL | PROCESS)[message]))
    assert process_state.read(process_state.EVERYTHING) == before
    # Once more, and by another arm: a fault that stayed would be found here, or change the answer.
    assert answer(asked, plain) == expected


@pytest.mark.parametrize("message", STATE)
def test_what_a_method_keeps_between_samples_is_named(asked, message) -> None:
    with pytest.raises(MethodFault, match=rf"Does changed .*{message}.*what one video needs lies in its run"):
        answer(asked, Does(STATE[message]))


@functools.cache
def table(n: int) -> list[int]:
    return list(range(n))


def well_behaved(self) -> None:
    generator = generator_for("q", 0)
    torch.rand(3, generator=generator), np.random.default_rng(0).random(), random.Random(0).random()
    table(4)
    os.environ["SET_BY_AN_IMPORT"] = "1"
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    handle = layer().register_forward_hook(lambda *_: None)
    handle.remove()


def test_a_method_that_cleans_up_passes(asked) -> None:
    assert answer(asked, Does(well_behaved)) == answer(asked, Does(lambda self: None))


@pytest.mark.parametrize("name", sorted(compressors.BUILTIN))
def test_every_built_in_method_passes(asked, name) -> None:
    family, prompt, _ = asked
    video = family.encode(synthetic_frames(4), signals=True)
    answer((family, family.prompt(video, TEXT, sample="q"), asked[2]), compressors.resolve(name)())


@pytest.mark.parametrize(
    "write",
    [
        lambda weight: weight.mul_(2),
        lambda weight: weight.data.mul_(2),
        lambda weight: weight.numpy().__imul__(2),
        lambda weight: setattr(weight, "data", weight.data * 2),
    ],
)
def test_changed_weights_end_the_run(asked, write) -> None:
    weight = layer().mlp.up_proj.weight.requires_grad_(False)
    stock = weight.clone()
    with pytest.raises(WeightsChanged, match="Does changed weights of the model, which cannot be put back"):
        answer(asked, Does(lambda self: write(weight)))
    weight.data = stock
    asked[2].refresh()  # a run would have ended


@pytest.mark.parametrize("write", [lambda buffer: buffer.mul_(2), lambda buffer: buffer.data.mul_(2)])
def test_so_do_changed_rotary_frequencies(asked, write) -> None:
    """Stock modules put another tensor in their place; only ``longrope`` writes into it, and is left alone."""
    buffer = next(b for name, b in FAMILY[0].decoder.module.named_buffers() if name.endswith("inv_freq"))
    assert guard_module._of_a_sample(SimpleNamespace(rope_type="longrope"), "inv_freq")
    assert not guard_module._of_a_sample(SimpleNamespace(rope_type="dynamic"), "inv_freq")
    stock = buffer.clone()
    with pytest.raises(WeightsChanged, match="Does changed weights of the model"):
        answer(asked, Does(lambda self: write(buffer)))
    buffer.data.copy_(stock)
    asked[2].refresh()  # a run would have ended


def test_an_error_of_the_method_is_told_with_what_it_left(asked) -> None:
    def fails(self):
        layer().register_forward_hook(halves)
        raise ValueError("a method that fails")

    with pytest.raises(MethodFault, match="left a hook on .*it had failed: a method that fails") as caught:
        answer(asked, Does(fails))
    assert isinstance(caught.value.__cause__, ValueError)
    assert not layer()._forward_hooks


WRITES = {
    "zeros": lambda tensor: tensor.zero_(),
    "data": lambda tensor: tensor.data.add_(1),
    "numpy": lambda tensor: tensor.numpy().__iadd__(1),
    "view": lambda tensor: tensor.view(-1)[-1:].add_(1),
    "shape": lambda tensor: tensor.set_(tensor.clone()[..., :1]),
}


@pytest.mark.parametrize("write", WRITES)
def test_what_other_arms_are_asked_with_is_put_back_and_named(asked, write) -> None:
    family, _, guard = asked
    video = family.encode(synthetic_frames(4), signals=True)
    prompt = family.prompt(video, TEXT, sample="q")
    plain, before = compressors.resolve("none")(), lent.copy(video.features)
    expected = answer((family, prompt, guard), plain)
    shared = prompt.inputs.get("inputs_embeds", video.features)
    compressor = Does(lambda self: WRITES[write](shared))
    with (
        pytest.raises(MethodFault, match=r"Does wrote into (prompt\.inputs\.\w+|video\.features)"),
        torch.inference_mode(),
        guard.sample(compressor, prompt=prompt, video=video),
    ):
        run = lent.start(compressor, prompt.layout, BUDGET)
        with Compression(family.decoder, run, prompt.layout):
            family.answer(prompt, 3)
    assert lent.same(video.features, before)
    assert answer((family, prompt, guard), plain) == expected


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        ("tokenizer", "chat_template", "{{ messages }}"),
        ("tokenizer", "padding_side", "left"),
        ("tokenizer", "_special_tokens_map", {"eos_token": "a"}),
        ("processor", "chat_template", "{{ messages }}"),
    ],
)
def test_what_words_the_prompt_is_put_back(asked, owner: str, name: str, value: object) -> None:
    family = asked[0]
    speaker = getattr(family, owner)
    before = getattr(speaker, name)
    with pytest.raises(MethodFault, match=f"changed (tokenizer|{owner}).{name}"):
        answer(asked, Does(lambda self: setattr(speaker, name, value)))
    assert getattr(speaker, name) == before != value


def test_an_entry_of_a_settings_table_is_put_back(asked) -> None:
    table = asked[0].tokenizer._special_tokens_map
    before = dict(table)
    with pytest.raises(MethodFault, match="changed tokenizer._special_tokens_map"):
        answer(asked, Does(lambda self: table.update(pad_token="a")))
    assert asked[0].tokenizer._special_tokens_map == before


def test_another_vocabulary_ends_the_run(asked, monkeypatch) -> None:
    tokenizer = asked[0].tokenizer
    sizes = iter([len(tokenizer)])
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: next(sizes, 7))
    with pytest.raises(
        WeightsChanged, match="Does changed the tokenizer's vocabulary, which cannot be put back"
    ):
        answer(asked, Does(lambda self: None))


@pytest.mark.parametrize(
    "name",
    ["transformers.cache_utils.DynamicLayer", "stsimdiff.engine.compression._now", "stsimdiff.tokens.Grid"],
)
def test_what_every_answer_runs_through_is_put_back(asked, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    stock = getattr(sys.modules[module], attribute)
    with pytest.raises(MethodFault, match=f"replaced {name}"):
        answer(
            asked, Does(lambda self: setattr(sys.modules[module], attribute, lambda *a, **k: stock(*a, **k)))
        )
    assert getattr(sys.modules[module], attribute) is stock


def test_a_thread_that_is_left_is_named(asked) -> None:
    done = threading.Event()
    with pytest.raises(MethodFault, match="left the thread 'forgotten' running; end it"):
        answer(asked, Does(lambda self: threading.Thread(target=done.wait, name="forgotten").start()))
    done.set()


def test_a_left_thread_does_not_keep_the_process_from_ending() -> None:
    code = (
        "import threading\nfrom stsimdiff.evaluate import guard\nbefore = set(threading.enumerate())\n"
        "threading.Thread(target=threading.Event().wait, name='forgotten').start()\n"
        "assert guard._left(before)\nprint('written')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and done.stdout == "written\n"
    assert "ended with the threads ['forgotten'] still running" in done.stderr
