"""What a method says of its fidelity to its authors' code, and where a reader of a table is told."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from helpers.synthetic_run import answers, write_arm
from stsimdiff import compressors
from stsimdiff.compressors.controls import RandomTokens
from stsimdiff.compressors.visionzip import VisionZip
from stsimdiff.config.arms import arm_from_config
from stsimdiff.errors import ConfigError
from stsimdiff.launchers.base import configurations
from stsimdiff.report import publish
from stsimdiff.source import FIDELITIES
from stsimdiff.terminal import Console

VARIANTS = {"visionzip", "fastervlm"}
CONTROLS = {"no_video", "random", "uniform_frames", "spatial_pool", "chain"}
WHY = "takes SigLIP's first patch for a class token"


@dataclass(frozen=True)
class Silent(VisionZip):
    """A method of a user's own."""


@dataclass(frozen=True)
class Wrong(RandomTokens):
    """A method of a user's own."""

    fidelity: ClassVar[str] = "exact"


@dataclass(frozen=True)
class Told(RandomTokens):
    """A method of a user's own.

    Fidelity: the published one draws
    frames.
    """

    fidelity: ClassVar[str] = "variant"


@pytest.mark.parametrize("name", compressors.BUILTIN)
def test_every_built_in_method_declares_a_word_and_says_why(name) -> None:
    cls = compressors.resolve(name)
    said = compressors.fidelity_of(cls)
    assert said["word"] in FIDELITIES and len(said["reason"].split()) > 6
    assert (said["word"] == "variant") == (name in VARIANTS)
    assert (said["word"] == "adapted") == (name in CONTROLS), "a published method is proved by recordings"
    assert compressors.declared(name) == said, "read from the source as from the class"
    table = (Path(compressors.__file__).parent / "README.md").read_text()
    assert f"| `{name}` | `{cls.__name__}` | {said['word']} |" in table


def test_a_user_s_own_method() -> None:
    assert compressors.fidelity_of(Silent) is None, "it does not inherit the word"
    assert compressors.declared("Silent") is None
    assert compressors.fidelity_of(Told) == {"word": "variant", "reason": "the published one draws frames."}
    with pytest.raises(
        ConfigError,
        match=r"Wrong has fidelity='exact'; allowed: 'official', 'official, adapted', 'adapted', 'pap",
    ):
        compressors.fidelity_of(Wrong)


def _printed(run: Path) -> dict[str, str]:
    """The four texts of a run's table, on one line each."""
    out = io.StringIO()
    publish.publish(run, Console(file=out, width=200))
    found = {"terminal": out.getvalue()}
    found |= {name: (run / name).read_text() for name in ("table.md", "table.tex", "report.html")}
    return {
        name: re.sub(r"(&#39;|\s|\\)+", lambda m: "'" if "&" in m[0] else " ", text)
        for name, text in found.items()
    }


def test_the_note_stands_below_a_table_that_has_the_method(tmp_path) -> None:
    for method in ("random", "prumerge", "visionzip"):
        write_arm(tmp_path, method, 0.3, answers(0.6, 0.3))
    for name, text in _printed(tmp_path).items():
        assert "Fidelity of visionzip, a variant of what was published" in text, name
        # The last screen has one line for a note.
        whole = "Fidelity of visionzip, a variant of what was published: Table 1's row is from"
        assert (whole in text and WHY in text) is (name != "terminal"), name
        assert "Fidelity of prumerge" not in text and "Fidelity of fastervlm" not in text, name
    assert r"\item Fidelity of visionzip" in (tmp_path / "table.tex").read_text()


def test_no_note_where_no_method_needs_one(tmp_path) -> None:
    for method in ("random", "prumerge", "st_simdiff"):
        write_arm(tmp_path, method, 0.3, answers(0.6, 0.3))
    for name, text in _printed(tmp_path).items():
        assert "Fidelity of" not in text, name


def test_a_user_s_own_variant_is_told_by_its_record(tmp_path) -> None:
    said = compressors.fidelity_of(Told)
    write_arm(tmp_path, "Told", 0.3, answers(0.6, 0.3), fidelity=said)
    write_arm(tmp_path, "Silent", 0.3, answers(0.5, 0.3), fidelity=None)
    found = _printed(tmp_path)["table.md"]
    assert "Fidelity of Told, a variant of what was published: the published one draws frames." in found
    assert "Silent, a variant" not in found


def test_it_is_stored_and_no_part_of_the_identity(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = (
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from stsimdiff.compressors.controls import RandomTokens\n\n"
        "@dataclass(frozen=True)\nclass Mine(RandomTokens):\n    '''Mine.'''\n{}    share: float = 1.0\n"
    )
    ids = set()
    for number, line in enumerate(
        ("", '    fidelity: ClassVar[str] = "variant"\n', "    fidelity = 'adapted'\n")
    ):
        name = f"fidelity_method_{number}"
        (tmp_path / f"{name}.py").write_text(text.format(line))
        words = [f"compressor._target_={name}.Mine", "logger=none"]
        arm = arm_from_config(configurations([*words, "plan=true"])[0])
        ids.add(arm.code)
        assert json.loads(json.dumps(arm.fidelity)) == arm.fidelity
    assert arm.fidelity == {"word": "adapted", "reason": ""}
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("experiment", "settings"),
    [("table1", (0.6, 1)), ("table_nvila", (0.7, 1)), ("table_qwen2_vl", (0.5, 4))],
)
def test_framefusion_has_its_authors_settings_of_each_model(experiment, settings) -> None:
    found = configurations([f"experiment={experiment}", "plan=true"])
    fused = [cfg.compressor for cfg in found if cfg.compressor._target_.endswith("FrameFusion")]
    assert len(fused) >= 2 and {(one.tau_sim, one.queries) for one in fused} == {settings}
