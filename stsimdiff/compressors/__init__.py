"""The list of compression methods by name, ours and those that other packages register.

A method of ours is a file here and one in ``configs/compressor``, which names its class. Nothing is imported until a
method is asked for. A package adds methods by the entry point group
``stsimdiff.compressors``; a user's own file needs no name at all
(``compressor._target_=my_module.MyMethod``).
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from pathlib import Path

from stsimdiff import source
from stsimdiff.errors import ConfigError
from stsimdiff.registry import Registry
from stsimdiff.resources import folder
from stsimdiff.source import FIDELITIES


def _builtin() -> dict[str, str]:
    targets = {}
    for file in sorted((folder("configs") / "compressor").glob("*.yaml")):
        found = re.search(r"^_target_: (stsimdiff\.\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            targets[file.stem] = found[1]
    return targets


BUILTIN = _builtin()
"""Name to dotted class path: the files of ``configs/compressor``, ``custom`` aside."""
RENAMED = {"temporal_difference": "evs"}
"""Former names, which stored results may have, and the methods that they are now."""
REGISTRY = Registry("compressor", "stsimdiff.compressors", BUILTIN, RENAMED, own="my_module.MyMethod")
names, resolve = REGISTRY.names, REGISTRY.resolve


def code_version(cls: type, *parts: type) -> str:
    """Twelve hex digits that change with the code a method relies on, so that its old answers are not reused.

    What counts: :mod:`stsimdiff.source`. ``parts``: classes of other methods that it runs.

    Raises:
        ConfigError: when the source of the class cannot be read (typed at a prompt, for example).
    """
    return source.version_of(cls, *parts)


def fidelity_of(cls: type) -> dict[str, str] | None:
    """What a method declares of its fidelity, ``word`` and ``reason``; ``None`` where it declares nothing.

    A class that derives from another's is another method: it does not inherit the word.

    Raises:
        ConfigError: for a word that is none of :data:`FIDELITIES`.
    """
    word = vars(cls).get("fidelity") or None
    if word not in (None, *FIDELITIES):
        raise ConfigError(
            f"{cls.__module__}.{cls.__qualname__} has fidelity={word!r}; allowed: "
            f"{', '.join(map(repr, FIDELITIES))}, or none"
        )
    return _declared(word, cls.__doc__)


def declared(name: str) -> dict[str, str] | None:
    """The same of a built-in method by its name, read from its source: a report imports no torch for it."""
    if name not in BUILTIN:
        return None
    module, _, attribute = BUILTIN[name].rpartition(".")
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    cls = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == attribute)
    words = [
        ast.literal_eval(node.value)
        for node in cls.body
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.target) == "fidelity"
    ]
    return _declared(next(iter(words), None), ast.get_docstring(cls))


def _declared(word: str | None, docstring: str | None) -> dict[str, str] | None:
    if word is None:
        return None
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    paragraph = next((text for text in paragraphs if text.startswith("Fidelity: ")), "")
    return {"word": word, "reason": " ".join(paragraph.removeprefix("Fidelity: ").split())}
