"""Which family, which devices, whose code: checked in the settings, before a model is loaded."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from stsimdiff import models, registry
from stsimdiff.config.arms import arm_from_config
from stsimdiff.config.settings import settings_from_config
from stsimdiff.errors import ConfigError
from stsimdiff.evaluate import session
from stsimdiff.models.base import LoadOptions
from stsimdiff.models.qwen3_vl import Qwen3VL
from stsimdiff.resources import folder

OWN = """
from stsimdiff.models.qwen3_vl import Qwen3VL


class Mine(Qwen3VL):
    options = {"shade": ("light", "dark")}

    @classmethod
    def load(cls, path, options):
        return options
"""


@pytest.fixture(autouse=True)
def own_family(own_module) -> None:
    own_module("mine", OWN)


@pytest.mark.parametrize("name", sorted(models.FAMILIES))
def test_every_family_has_a_file(configure, name) -> None:
    settings = settings_from_config(configure(f"model={name}"))
    assert (settings.model.name, settings.model.family) == (name, name)
    assert settings.model.device_map is None and settings.model.trust_remote_code is False
    assert len(settings.model.code) == 12 and models.info(name).released in (
        folder("configs") / "model" / f"{name}.yaml"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model.device=word", "model.device='word' is out of range; allowed: auto, cpu, cuda, "),
        ("model.device=meta", "model.device='meta' is out of range"),
        ("model.device_map={model:gpu}", "model.device_map.model='gpu' is out of range"),
        ("model.device_map=cpu", "model.device_map='cpu' is out of range; allowed: null, auto, balanced"),
        ("model.device_map=3", "model.device_map=3 is out of range"),
        ("model.device_map={}", "model.device_map={} is out of range; allowed: .* or devices by module"),
        ("model.device_map={model:disk}", "model.device_map.model='disk' is out of range"),
        ("model.device_map={model:-1}", "model.device_map.model=-1 is out of range"),
        ("model.device_map={model:true}", "model.device_map.model=True is out of range"),
        ("model.device_map=auto model.device=cpu", "say different things"),
        ("model.trust_remote_code=perhaps", "model.trust_remote_code='perhaps' is out of range; allowed: true, false"),
        ("model=nvila model.trust_remote_code=true", "has no meaning for model.family=nvila"),
        ("model=llava_video model.trust_remote_code=true", "has no meaning for model.family=llava_video"),
        ("model.family=qwen33_vl", "model.family=qwen33_vl is unknown; .*my_module.MyFamily; did you mean qwen3_vl"),
        ("model.family=7", "model.family=7 is out of range; allowed: a name"),
        ("model.family=nowhere.Mine", "cannot be imported: ModuleNotFoundError"),
        ("model.family=mine.Nothing", "cannot be imported: AttributeError"),
        ("model.family=json.JSONDecoder", "is no model family; it must be a class derived from"),
        ("model.family=stsimdiff.models.base.Family", "lacks decoder, encode, load, placeholders, prompt"),
        ("model=custom model.family=mine.Mine", "model.shade is missing"),
        ("model=custom model.family=mine.Mine +model.shade=red", "model.shade=red is unknown; allowed: light, dark"),
    ],
)  # fmt: skip
def test_wrong_values(configure, words, message) -> None:
    given = words.split()
    given = given if given[0].startswith("model=") else ["model=qwen3_vl", *given]
    with pytest.raises(ConfigError, match=message):
        settings_from_config(configure(*given))


@pytest.mark.parametrize(
    "given", ["auto", "balanced", "{model.visual:0,model.language_model:cuda:1,lm_head:cpu}"]
)
def test_maps_are_settings_but_no_other_arm(configure, given) -> None:
    plain = configure("model=qwen3_vl", "compressor=random", "budget.retention=0.3")
    mapped = configure(
        "model=qwen3_vl", "compressor=random", "budget.retention=0.3", f"model.device_map={given}"
    )
    found = settings_from_config(mapped).model.device_map
    assert found == given or found == {"model.visual": 0, "model.language_model": "cuda:1", "lm_head": "cpu"}
    assert arm_from_config(plain).id == arm_from_config(mapped).id


def test_the_settings_reach_the_family(configure) -> None:
    words = ("model=custom", "model.family=mine.Mine", "+model.shade=dark", "model.trust_remote_code=true")
    settings = settings_from_config(configure(*words, "model.device_map=auto", "model.dtype=float16"))
    options = session.load_model(settings)
    assert options == LoadOptions("auto", "float16", "sdpa", {"shade": "dark"}, "auto", True)


def test_another_version_of_an_own_family_is_another_arm(configure, own_module) -> None:
    def arm() -> str:
        words = ("model=custom", "model.family=mine.Mine", "+model.shade=dark", "compressor=none")
        return arm_from_config(configure(*words)).id

    first = arm()
    assert arm() == first
    own_module("mine", OWN + "\n\nCHANGED = True\n")
    assert arm() != first


def test_entry_points(configure, monkeypatch) -> None:
    points = [
        EntryPoint("theirs", "stsimdiff.models.qwen3_vl:Qwen3VL", models.REGISTRY.group),
        EntryPoint("gone", "nowhere:Nothing", models.REGISTRY.group),
    ]
    monkeypatch.setattr(
        registry, "entry_points", lambda group: points if group == models.REGISTRY.group else []
    )
    assert models.resolve("theirs") is Qwen3VL and models.names()[-2:] == ["gone", "theirs"]
    settings = settings_from_config(configure("model=custom", "model.family=theirs"))
    assert settings.model.family == "theirs" and settings.model.code
    with pytest.raises(ConfigError, match="model.family=gone cannot be imported: ModuleNotFoundError"):
        settings_from_config(configure("model=custom", "model.family=gone"))
    with pytest.raises(ConfigError, match="did you mean theirs"):
        settings_from_config(configure("model=custom", "model.family=their"))
