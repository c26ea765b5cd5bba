"""A version of code changes with what the code says, wherever it stands, and with nothing else."""

import importlib
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import stsimdiff
from stsimdiff import compressors, resources, source
from stsimdiff.errors import ConfigError

PACKAGE = Path(stsimdiff.__file__).parent
ROOTS = ("engine:Compression", "video:read", "models.nvila:NVILA", "compressors.st_simdiff:STSimDiff")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Names of copies of this package, with the folders beside it, each changed by a function given its folder."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def copy(change=lambda folder: None) -> str:
        name = f"renamed{len(made)}"
        made.append(name)
        folder = tmp_path / name
        shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
        for beside in ("configs", "tasks"):
            shutil.copytree(resources.folder(beside), folder / beside)
        change(folder)
        for file in folder.rglob("*.py"):
            file.write_text(re.sub(r"\bstsimdiff(?=\.| import)", name, file.read_text()))
        for file in folder.rglob("*.yaml"):
            file.write_text(file.read_text().replace("_target_: stsimdiff.", f"_target_: {name}."))
        return name

    yield copy
    for name in [name for name in sys.modules if name.startswith("renamed")]:
        del sys.modules[name]


@pytest.fixture
def copied(package):
    """The version of the roots in a changed copy."""

    def version(change=lambda folder: None, roots=ROOTS) -> str:
        return importlib.import_module(f"{package(change)}.source").version_of(*roots)

    return version


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_another_name_of_the_package_and_of_its_modules_changes_nothing(copied):
    def move(folder: Path) -> None:
        (folder / "method").mkdir()
        (folder / "method" / "__init__.py").write_text("")
        (folder / "tokens.py").rename(folder / "method" / "vocabulary.py")
        for file in folder.rglob("*.py"):
            text = file.read_text().replace("stsimdiff.tokens", "stsimdiff.method.vocabulary")
            file.write_text(text)

    before = source.version_of(*ROOTS)
    assert copied() == before
    assert copied(move) == before


def test_moving_and_renaming_modules_changes_no_arm_s_id(package, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "model.safetensors").write_bytes(b"weights")

    def ids(name: str) -> dict[tuple[str, str], str]:
        arms = importlib.import_module(f"{name}.config.arms")
        configs = importlib.import_module(f"{name}.resources").folder("configs")
        found = {}
        families = {"embedded": ["random", "st_simdiff"], "nvila": ["random"]}
        with initialize_config_dir(str(configs), version_base="1.3"):
            for model, method in [(model, method) for model, some in families.items() for method in some]:
                words = [f"model={model}", f"model.path={checkpoint}", f"compressor={method}", "logger=none"]
                found[model, method] = arms.arm_from_config(compose("config", words)).id
        return found

    def move(folder: Path) -> None:
        moved = {"graph": "ground.distances", "tokens": "ground.words", "stand_ins": "ground.pointers"}
        for old, new in moved.items():
            place = folder / f"{new.replace('.', '/')}.py"
            place.parent.mkdir(exist_ok=True)
            (folder / f"{old}.py").rename(place)
        (folder / "ground" / "__init__.py").write_text("")
        (folder / "compressors" / "controls.py").rename(folder / "ground" / "simple.py")
        (folder / "models").rename(folder / "families")
        for file in [*folder.rglob("*.py"), *folder.rglob("*.yaml")]:
            text = file.read_text()
            for old, new in {**moved, "compressors.controls": "ground.simple", "models": "families"}.items():
                text = text.replace(f"stsimdiff.{old}", f"stsimdiff.{new}")
                if file == folder / "source.py":  # names what is no part of an identity
                    text = text.replace(f'"{old}.', f'"{new}.')
                if "." not in old:
                    parent, _, name = f"stsimdiff.{new}".rpartition(".")
                    text = re.sub(
                        rf"from stsimdiff import {old}\b", f"from {parent} import {name} as {old}", text
                    )
            file.write_text(text)

    before = ids("stsimdiff")
    assert len(set(before.values())) == len(before)
    assert ids(package(move)) == before


def test_a_word_that_was_renamed_changes_no_task_s_version(package):
    def version(name: str) -> str:
        files = importlib.import_module(f"{name}.config.task_files")
        tasks = importlib.import_module(f"{name}.resources").folder("tasks")
        return files.task_version(*files.read_task(tasks / "stock" / "videomme.yaml"))

    def spelled(one: str, many: str):
        def change(folder: Path) -> None:
            for file in (folder / "data" / "benchmarks.py", folder / "tasks" / "stock" / "task.py"):
                text = re.sub(r"\bcategories\b", many, file.read_text())
                file.write_text(re.sub(r"\bcategory\b", one, text))

        return change

    before = version("stsimdiff")
    assert version(package(spelled("family", "families"))) == before
    assert version(package(spelled("kind", "kinds"))) != before


def test_a_function_moved_to_another_module_changes_nothing(copied):
    def move(folder: Path) -> None:
        text = (folder / "engine/slicing.py").read_text()
        start, end = text.index("def cut_mask"), text.index("def cut_rotary")
        (folder / "masks.py").write_text(f"from torch import Tensor\n\nUNUSED = 1\n\n\n{text[start:end]}")
        (folder / "engine/slicing.py").write_text(text[:start] + text[end:])
        edit(folder / "engine/slicing.py", "from torch", "from stsimdiff.masks import cut_mask\nfrom torch")

    assert copied(move) == source.version_of(*ROOTS)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("trace.py", '"""', '"""Other words. '),
        ("report/table.py", "import", "UNRELATED = 1\nimport"),
        ("evaluate/store.py", "import math", "UNRELATED = 1\nimport math"),
        ("commands/cli.py", "import os", "UNRELATED = 1\nimport os"),
        ("compressors/fastv.py", "last", "LAST"),
        ("models/internvl.py", '"internvl"', '"internvl2"'),
        ("engine/slicing.py", "length: int) -> Tensor", "length: 'int')"),
        ("compressors/st_simdiff.py", "4 * grid.tokens", "5 * grid.tokens"),
        ("compressors/base.py", "return 0\n", "return 1\n"),
    ],
)
def test_what_decides_no_answer_changes_nothing(copied, file, old, new):
    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        place = text.index(old) if file != "trace.py" else text.index(old, text.index("class Trace"))
        if file in ("report/table.py", "evaluate/store.py", "commands/cli.py"):
            place = text.index(old, text.index("from __future__") + 40)
        (folder / file).write_text(text[:place] + text[place:].replace(old, new, 1))

    assert copied(change) == source.version_of(*ROOTS)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("budget.py", "def achieved", "def achieved(*a):\n    return {}\n\n\ndef before"),
        ("tokens.py", "return ", "return 0 or "),
        ("graph.py", "return ", "return 0 or "),
        ("engine/slicing.py", "return ", "return 0 or "),
        ("engine/attention.py", "QUERY_CHUNK = 64", "QUERY_CHUNK = 63"),
        ("compressors/base.py", "return ", "return 0 or "),
        ("models/siglip_qwen2.py", "return ", "return 0 or "),
        ("models/base.py", "do_sample=False", "do_sample=True"),
        ("models/tower.py", "return ", "return 0 or "),
        ("video/frames.py", "return ", "return 0 or "),
    ],
)
def test_what_lies_under_all_methods_counts(copied, file, old, new):
    assert copied(lambda folder: edit(folder / file, old, new)) != source.version_of(*ROOTS)


METHOD = '''
"""A method."""
from dataclasses import dataclass

import helper
from helper import scale as factor
from stsimdiff.compressors.base import Compressor


@dataclass(frozen=True)
class Mine(Compressor):
    """Words."""

    strength: float = 1.0

    def start(self, layout, budget):
        """More words."""
        from lazy import late
        return factor(late(self.strength))  # a comment
'''
HELPER = "import math\n\n\ndef scale(x):\n    return math.sqrt(x)\n\n\ndef other(x):\n    return x\n"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The version of a user's method beside two modules; the texts of the files are given, others stay as they are."""
    monkeypatch.syspath_prepend(str(tmp_path))
    texts = {"my_method.py": METHOD, "helper.py": HELPER, "lazy.py": "def late(x):\n    return x\n"}

    def version(**changed: str) -> str:
        texts.update({name.replace("__", "/") + ".py": text for name, text in changed.items()})
        for name, text in texts.items():
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).write_text(text)
        forget()
        importlib.invalidate_caches()
        return compressors.code_version(importlib.import_module("my_method").Mine)

    def forget() -> None:
        ours = {name.partition("/")[0].removesuffix(".py") for name in texts}
        for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
            del sys.modules[name]

    yield version
    forget()


def test_words_about_a_method_do_not_count(mine):
    before = mine()
    changed = METHOD.replace("Words.", "Other words.").replace("# a comment", "").replace("(x)", "( x )")
    assert mine(my_method=changed, helper=f'"""About it."""\n{HELPER}  # the end\n') == before
    assert mine(my_method=changed.replace("= 1.0", "= 2.0")) != before


@pytest.mark.parametrize(
    "change",
    [
        {"helper": HELPER.replace("math.sqrt(x)", "math.sqrt(x) / 2")},
        {"helper": HELPER + "\nscale = other\n"},
        {"helper": HELPER.replace("import math", "import cmath as math")},
        {"lazy": "def late(x):\n    return -x\n"},
        {"my_method": METHOD.replace("import scale", "import other")},
        {"lazy": "from deeper import late\n", "deeper": "def late(x):\n    return 2 * x\n"},
    ],
)
def test_every_module_that_a_method_uses_counts(mine, change):
    assert mine() != mine(**change)


def test_modules_of_modules_count(mine):
    package = {
        "my_method": METHOD.replace("import helper\n", "import deep.inner.place\n"),
        "deep__inner__place": "from . import beside\nfrom ..above import up\n",
        "deep__inner__beside": "A = 1\n",
        "deep__above": "def up():\n    return 1\n",
    }
    texts = dict(package)
    (first := mine(**texts))
    assert mine() == first
    for name, text in (("deep__inner__beside", "A = 2\n"), ("deep__above", "def up():\n    return 2\n")):
        before, after = mine(), mine(**{name: text})
        assert after != before


def test_a_module_loaded_by_its_path_counts(mine, tmp_path):
    loading = (
        "import importlib.util\n"
        f"_spec = importlib.util.spec_from_file_location('hidden', {str(tmp_path / 'elsewhere' / 'hidden.py')!r})\n"
        "hidden = importlib.util.module_from_spec(_spec)\n_spec.loader.exec_module(hidden)\n"
    )
    before = mine(my_method=METHOD + loading, elsewhere__hidden="A = 1\n")
    assert mine(elsewhere__hidden="A = 1  # one\n") == before
    assert mine(elsewhere__hidden="A = 2\n") != before


def test_what_a_user_s_method_uses_of_this_package_counts(mine, monkeypatch, tmp_path):
    for text in (
        METHOD.replace("import helper\n", "from stsimdiff import graph\n").replace(
            "factor(", "graph.group_means("
        ),
        METHOD.replace("import helper\n", "from stsimdiff.graph import group_means as f\n").replace(
            "factor(", "f("
        ),
        METHOD.replace("import helper\n", "from stsimdiff.graph import *\n").replace(
            "factor(", "group_means("
        ),
        METHOD.replace("from lazy import late\n", "from stsimdiff.graph import group_means as late\n"),
    ):
        reached = _reached(mine, my_method=text)
        assert ("stsimdiff.graph", "group_means") in reached
        assert ("stsimdiff.compressors.base", "Compressor") in reached
    assert ("stsimdiff.graph", "group_means") not in _reached(mine, my_method=METHOD)


def _reached(mine, **texts: str) -> set[tuple[str, str]]:
    mine(**texts)
    code = source._Code()
    code.cls(sys.modules["my_method"].Mine)
    ours = [key for key in code._seen if isinstance(key, tuple) and key[0].startswith("stsimdiff.")]
    return {(module, getattr(source._ours(module).body[number], "name", "")) for module, number in ours}


def test_installed_packages_and_the_standard_library_do_not_count(mine):
    code = source._Code()
    mine(helper="import torch\nimport rich\nfrom json import decoder\n" + HELPER)
    code.cls(sys.modules["my_method"].Mine)
    names = {key for key in code._seen if isinstance(key, str)}
    assert names == {"my_method", "helper", "lazy"}


def test_a_class_without_a_readable_source_is_refused():
    scope = {"__name__": "nowhere"}
    exec("class Typed:\n    pass\n", scope)
    with pytest.raises(ConfigError, match="the source of Typed cannot be read"):
        compressors.code_version(scope["Typed"])


def test_what_does_not_count_is_there():
    for name in (*source.STOPS, *source.BUT):
        assert source._ours(f"stsimdiff.{name}"), f"{name} was moved or renamed: its code counts now"
