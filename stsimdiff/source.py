"""Versions of code by what it says: a digest that changes with the code a class relies on, and with nothing else.

Comments, docstrings, layout and the annotations of functions do not count, and neither does where a definition stands.
Of this package each definition counts that is reached by its name, however its modules are called or divided; of
a user's code every module that is reached by an import, whole. The standard library and what is installed do not count.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import inspect
import re
import site
import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from stsimdiff import resources
from stsimdiff.errors import ConfigError
from stsimdiff.files import fingerprint, sha256

OURS = __name__.partition(".")[0]
STOPS = (
    "compressors.mistakes", "cost", "config", "conformance", "evaluate", "report", "latency", "plan", "kit",
    "launchers", "commands", "resources", "schema", "lock", "extras", "video.headers", "data.archives", "data.digests",
    "data.fetch", "data.moments", "data.videos", "data.clips.dataset", "data.clips.world", "data.clips.rendering",
    "data.clips.labels", "data.clips.moments", "data.clips.worlds", "models.info", "models.presence", "registry",
)  # fmt: skip
"""Modules of ours, or packages, whose code decides no answer: counts and times, files, what is printed. Videos and
questions are known by their contents."""
BUT = ("evaluate.questions",)
"""What counts all the same."""
ASIDE = {"flops", "no_flops", "reads_question", "released_files", "miniature"}
"""Members of our classes that decide no answer either."""
INSTALLED = {
    "torch", "torchvision", "torchcodec", "transformers", "lmms_eval", "numpy", "scipy", "sklearn", "pandas",
    "PIL", "datasets", "hydra", "omegaconf", "safetensors", "huggingface_hub", "accelerate", "av", "decord",
    "triton",
}  # fmt: skip
"""Packages that never count, also where somebody works on them in a folder of their own."""

SPELLED = {"category": "family", "categories": "families"}
"""Names of today, and what they were when the ids of arms were first made of this code. Another name is no other
code, so it is hashed as it was."""
SPELLED_IN = (
    resources.PACKAGE / "data" / "benchmarks.py",
    *(resources.folder("tasks").resolve() / task / "task.py" for task in ("clips", "stock")),
)
"""The files with these names."""

FIDELITIES = ("official", "official, adapted", "adapted", "paper", "variant")
"""What a method says of itself: ``official``, equal to its authors' released code, as recorded outputs prove;
``official, adapted``, equal to it in what was recorded, with what its reason names done otherwise; ``adapted``, the
authors' algorithm fitted to another setting than theirs, without such a proof; ``paper``, written from the paper, for
lack of released code; ``variant``, other than what produced the published rows. A table says the reason of a
``variant`` below its rows. To a digest it is no more than a docstring."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def version_of(*roots: type | Callable[..., Any] | str | Path) -> str:
    """Twelve hex digits of all code that the roots rely on.

    Args:
        roots: classes, or functions; definitions of this package, as ``module:name`` below it; files, whole.

    Raises:
        ConfigError: when the source of a class cannot be read (typed at a prompt, for example).
    """
    if all(isinstance(root, str) for root in roots):
        return _version_of_ours(roots)
    return _version(roots)


def own_frame(error: BaseException | None) -> str | None:
    """Where in the user's own code an error arose: file, line, function and code of the last frame that is neither
    ours, nor installed, nor the standard library's; ``None`` where there is none."""
    while error is not None:
        if isinstance(error, SyntaxError) and error.filename and _users(error.filename):
            return f"{_near(error.filename)}, line {error.lineno}: {(error.text or '').strip()}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if _users(frame.filename):
                return f"{_near(frame.filename)}, line {frame.lineno}, in {frame.name}: {frame.line}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def place_of(thing: Any) -> str:
    """``file, line`` of a function's or a class's definition."""
    try:
        return f"{_near(inspect.getsourcefile(thing) or '?')}, line {inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError):
        return getattr(thing, "__qualname__", str(thing))


def _users(file: str) -> bool:
    ours = Path(file).resolve().is_relative_to(Path(__file__).resolve().parent)
    return not (ours or file.startswith("<") or _installed(file))


def _near(file: str) -> str:
    """A path as it is written from the current folder, where it lies below it."""
    with suppress(ValueError, OSError):
        return str(Path(file).resolve().relative_to(Path.cwd()))
    return file


def placeless(text: str) -> str:
    """The text; of a dotted path into this package the last name alone, as where it stands has no meaning."""
    return text.rpartition(".")[2] if re.fullmatch(rf"{OURS}(\.\w+)+", text) else text


@cache
def _version_of_ours(roots: tuple[str, ...]) -> str:
    """What runs in this process is what was read at its start."""
    return _version(roots)


def _version(roots: Iterable[Any]) -> str:
    code = _Code()
    for root in roots:
        if isinstance(root, Path):
            code.file(root)
        elif isinstance(root, str):
            module, _, name = root.partition(":")
            code.definition(f"{OURS}.{module}", name)
        else:
            code.cls(root)
    return fingerprint("\n".join(sorted(code.items)))


@dataclass
class _Module:
    """A parsed file: its statements, which of them bind a name, and what its names were imported from."""

    name: str
    package: bool
    body: list[ast.stmt]
    bound: dict[str, list[int]] = field(default_factory=dict)
    imported: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    effects: list[int] = field(default_factory=list)
    mentioned: set[str] = field(default_factory=set)
    """Modules that an import anywhere in it may bring."""
    stars: list[str] = field(default_factory=list)


class _Code:
    """What was reached so far, as one text a definition (of this package) or a module (of a user)."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self._seen: set[Any] = set()
        self._own: set[str] = set()

    def cls(self, cls: Any) -> None:
        """A class with its bases, or a function."""
        top = cls.__module__.partition(".")[0]
        if top != OURS:
            self._own.add(top)
        for base in getattr(cls, "__mro__", (cls,)):
            name = base.__module__
            if name.partition(".")[0] == OURS:
                self.definition(name, base.__qualname__.partition(".")[0])
            elif name.partition(".")[0] not in sys.stdlib_module_names | INSTALLED or name == "__main__":
                if self._user_file_of(name) is None:
                    self._without_file(base, base)
                else:
                    self._user(name)

    def file(self, path: Path) -> None:
        """A file of a task: all of it, and what it uses of this package."""
        module = _parsed(path, path.stem, False)
        for number in range(len(module.body)):
            self._statement(module, number)

    def definition(self, module: str, name: str | None) -> str:
        """Follow a name of this package to where it is defined; returns the name that it has there."""
        if not _counts(module):
            return name or "module"
        parsed = _ours(module)
        if parsed is None:
            return name or "module"
        if name is None:
            for number in range(len(parsed.body)):
                self._statement(parsed, number)
            return "module"
        for number in parsed.effects:
            self._statement(parsed, number)
        if name in parsed.bound:
            for number in parsed.bound[name]:
                self._statement(parsed, number)
            return name
        # A package may import a module of its own, inside a function.
        if parsed.imported.get(name, (module, name)) != (module, name):
            return self._imported(*parsed.imported[name])
        if _ours(f"{module}.{name}"):
            return self.definition(f"{module}.{name}", None)
        for star in parsed.stars:
            self.definition(star, None)
        return name

    def _imported(self, module: str, name: str | None) -> str:
        if module.partition(".")[0] == OURS:
            return self.definition(module, name)
        return f"{module}.{name}" if name else module

    def _statement(self, module: _Module, number: int) -> None:
        key = (module.name, number)
        if key not in self._seen:
            self._seen.add(key)
            if text := _Spelling(self, module).of(module.body[number]):
                self.items.append(fingerprint(text, digits=64))

    def _user(self, name: str) -> None:
        """A module of a user's, whole, with the packages around it and the modules that it may import."""
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            self._user_module(".".join(parts[:end]))

    def _user_module(self, name: str) -> None:
        file = self._user_file_of(name)
        if file is None or name in self._seen:
            return
        self._seen.add(name)
        if file.suffix != ".py":
            if file.is_file():
                self.items.append(sha256(file))
            return
        self._user_file(file, name)

    def _user_file(self, file: Path, name: str) -> None:
        module = _parsed(file, name, file.name == "__init__.py")
        texts = [_Spelling(self, module, whole=True).of(statement) for statement in module.body]
        self.items.append(fingerprint("\n".join(texts), digits=64))
        for other in sorted(module.mentioned):
            if other.partition(".")[0] != OURS:
                self._user(other)
        self._globals(sys.modules.get(name))

    def _globals(self, module: ModuleType | None) -> None:
        """What a module's globals hold that no import statement brought, such as a file loaded by its path."""
        for value in list(vars(module).values()) if module else ():
            name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if not isinstance(name, str) or name.partition(".")[0] == OURS:
                continue
            if name in sys.modules:
                self._user(name)
                continue
            file = getattr(value, "__file__", None) if isinstance(value, ModuleType) else None
            if isinstance(value, FunctionType):
                file = value.__code__.co_filename
            if not isinstance(file, str) or file in self._seen or not file.endswith(".py"):
                continue
            if Path(file).is_file() and not _installed(file):
                self._seen.add(file)
                self._user_file(Path(file), name)

    def _without_file(self, thing: Any, cls: type) -> None:
        """A class or a function without a file (a notebook), and what of its module it uses."""
        try:
            text = textwrap.dedent(inspect.getsource(thing))
        except (OSError, TypeError) as error:
            raise ConfigError(
                f"the source of {cls.__qualname__} cannot be read, so its answers could not be "
                "told from those of another version; put it in a file"
            ) from error
        tree = ast.parse(text)
        module = _Module(thing.__module__, False, tree.body)
        self.items += [_Spelling(self, module, whole=True).of(statement) for statement in tree.body]
        around = vars(sys.modules[thing.__module__]) if thing.__module__ in sys.modules else {}
        for name in sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}):
            value = around.get(name)
            if name in self._seen or value is None or hasattr(builtins, name):
                continue
            self._seen.add(name)
            owner = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if owner == thing.__module__ and isinstance(value, (type, FunctionType)):
                if value is not thing:
                    self._without_file(value, cls)
            elif isinstance(owner, str) and owner.partition(".")[0] == OURS:
                self.definition(
                    owner, None if isinstance(value, ModuleType) else value.__qualname__.partition(".")[0]
                )
            elif isinstance(owner, str):
                self._user(owner)
            elif isinstance(value, (bool, int, float, str, tuple)):
                self.items.append(f"{name} = {value!r}")

    def _user_file_of(self, name: str) -> Path | None:
        """The file of a user's module; ``None`` for the standard library and what is installed."""
        top = name.partition(".")[0]
        if top == OURS or (top in sys.stdlib_module_names and name != "__main__") or top in INSTALLED:
            return None
        file = _file_of(name)
        if file is None or (top not in self._own and _installed(str(file))):
            return None
        return file


class _Spelling:
    """One statement as a text in which imported names of ours stand under the names they are defined by.

    Args:
        code: told of every definition that the statement names.
        module: where the statement stands.
        whole: whether the module counts as a whole; then its own names are not followed, and its imports of others
            than ours are kept.
    """

    def __init__(self, code: _Code, module: _Module, whole: bool = False) -> None:
        self.code, self.module, self.whole = code, module, whole

    def of(self, node: Any, function: bool = False) -> str:
        """The text; empty for what has no meaning."""
        if isinstance(node, list):
            return ",".join(text for item in node if (text := self.of(item, function)))
        if not isinstance(node, ast.AST):
            return self._constant(node)
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            return ""
        if _declares_fidelity(node):
            return ""
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return self._import(node)
        if isinstance(node, (ast.Name, ast.Attribute)) and (name := self._name(node)):
            return name
        if isinstance(node, ast.AnnAssign) and function:
            return self.of(ast.Assign([node.target], node.value), True) if node.value else ""
        inside = function
        if isinstance(node, ast.ClassDef):
            inside = False
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            inside = True
        parts = []
        for key, value in ast.iter_fields(node):
            if value is None or value == [] or key in ("ctx", "kind", "type_comment", "returns"):
                continue
            if key == "annotation":
                # Of a class's fields the type decides what a value becomes; which values are refused, no answer.
                if isinstance(node, ast.AnnAssign):
                    parts.append(f"annotation={ast.unparse(_type_of(value))}")
                continue
            if isinstance(node, ast.ClassDef) and key == "body" and not self.whole:
                value = [member for member in value if not ASIDE & set(_binding(member))]
            parts.append(f"{key}={self.of(value, inside)}")
        return f"{type(node).__name__}({' '.join(parts)})"

    def _constant(self, value: Any) -> str:
        return repr(placeless(value) if isinstance(value, str) else value)

    def _import(self, node: ast.Import | ast.ImportFrom) -> str:
        if not self.whole:
            return ""
        kept = [
            f"{alias.name} as {alias.asname}"
            for alias in node.names
            if (getattr(node, "module", None) or alias.name).partition(".")[0] != OURS
        ]
        if not kept:
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                if alias.name == "*":
                    self.code.definition(getattr(node, "module", None) or OURS, None)
                elif bound in self.module.imported:
                    self.code._imported(*self.module.imported[bound])
            return ""
        return f"import {'.' * getattr(node, 'level', 0)}{getattr(node, 'module', '')} {kept}"

    def _name(self, node: ast.Name | ast.Attribute) -> str:
        """What a name, or a chain of attributes of a module, stands for; empty where that has to be spelled out."""
        chain: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            chain.insert(0, inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name):
            return ""
        if not self.whole:
            # Also of a name that an import may fail to bring, and a statement binds then.
            for number in self.module.bound.get(inner.id, ()):
                self.code._statement(self.module, number)
        if inner.id not in self.module.imported:
            if not self.whole and inner.id not in self.module.bound:
                for star in self.module.stars:
                    self.code._imported(star, None)
            return "" if self.whole else ".".join([inner.id, *chain])
        module, name = self.module.imported[inner.id]
        if module.partition(".")[0] != OURS:
            return "" if self.whole else ".".join([module, *([name] if name else []), *chain])
        if name and not _binds(module, name) and _ours(f"{module}.{name}"):
            module, name = f"{module}.{name}", None
        while name is None and chain:
            name = chain.pop(0)
            if not _binds(module, name) and _ours(f"{module}.{name}"):
                module, name = f"{module}.{name}", None
        return ".".join([self.code.definition(module, name), *chain])


def _counts(module: str) -> bool:
    below = module.partition(".")[2]

    def among(names: Iterable[str]) -> bool:
        return any(below == name or below.startswith(f"{name}.") for name in names)

    return among(BUT) or not among(STOPS)


def _binds(module: str, name: str) -> bool:
    parsed = _ours(module)
    return parsed is not None and (name in parsed.bound or name in parsed.imported)


def _ours(name: str) -> _Module | None:
    """A module of this package, or ``None`` where there is none of this name."""
    place = Path(str(sys.modules[OURS].__file__)).parent.joinpath(*name.split(".")[1:])
    if (place / "__init__.py").is_file():
        return _parsed(place / "__init__.py", name, True)
    file = place.with_name(f"{place.name}.py")
    return _parsed(file, name, False) if name != OURS and file.is_file() else None


def _parsed(file: Path, name: str, package: bool) -> _Module:
    state = file.stat()
    return _parsed_state(file, name, package, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=1000)
def _parsed_state(file: Path, name: str, package: bool, *state: int) -> _Module:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as Python: {error}") from error
    if file.resolve() in SPELLED_IN:
        _spell_as_before(tree)
    module = _Module(name, package, [statement for statement in tree.body if not _for_people(statement)])
    for number, statement in enumerate(module.body):
        names = set(_binding(statement))
        for bound in names:
            module.bound.setdefault(bound, []).append(number)
        if not names and not isinstance(statement, (ast.Import, ast.ImportFrom, ast.AnnAssign)):
            module.effects.append(number)
        for node in ast.walk(statement):
            _note_import(module, node)
    return module


def _spell_as_before(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        for key, value in ast.iter_fields(node):
            if isinstance(value, str) and value in SPELLED:
                setattr(node, key, SPELLED[value])


def _for_people(statement: ast.stmt) -> bool:
    """Docstrings, imports for a type checker, and what runs only when the file is a script."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return True
    test = ast.unparse(statement.test) if isinstance(statement, ast.If) else ""
    return test in ("TYPE_CHECKING", "typing.TYPE_CHECKING") or test.startswith("__name__ == ")


def _binding(node: ast.AST) -> Iterator[str]:
    """Names that a statement of a module binds, inside ``if``, ``try`` and the like too."""
    if isinstance(node, Definition):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif not isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        for child in ast.iter_child_nodes(node):
            yield from _binding(child)


def _note_import(module: _Module, node: ast.AST) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            module.mentioned.add(alias.name)
            top = alias.name.partition(".")[0]
            module.imported.setdefault(alias.asname or top, (alias.name if alias.asname else top, None))
    elif isinstance(node, ast.ImportFrom):
        base = _base(module, node)
        module.mentioned.add(base)
        for alias in node.names:
            if alias.name == "*":
                module.stars.append(base)
                continue
            module.mentioned.add(f"{base}.{alias.name}")
            module.imported.setdefault(alias.asname or alias.name, (base, alias.name))
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            module.mentioned.add(node.args[0].value)


def _base(module: _Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + module.package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _file_of(name: str) -> Path | None:
    """Where a module lies, found without importing anything."""
    known = sys.modules.get(name)
    if known is not None:
        file = getattr(known, "__file__", None)
        return Path(file) if file and Path(file).is_file() else None
    top, *inner = name.split(".")
    spec = None
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not inner:
        return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for part in inner[:-1]:
        folders = [folder / part for folder in folders if (folder / part).is_dir()]
    for folder in folders:
        candidates = [
            folder / inner[-1] / "__init__.py",
            folder / f"{inner[-1]}.py",
            *folder.glob(f"{inner[-1]}.*.so"),
        ]
        for file in candidates:
            if file.is_file():
                return file
    return None


def _declares_fidelity(node: ast.AST) -> bool:
    """Whether a statement is a method's ``fidelity``, which says something of its answers and decides none of them."""
    if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not isinstance(node.value, ast.Constant):
        return False
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [getattr(target, "id", None) for target in targets] == ["fidelity"] and node.value.value in (
        "",
        *FIDELITIES,
    )


def _type_of(annotation: ast.expr) -> ast.expr:
    """``float`` of ``Annotated[float, Field(gt=0)]``; any other annotation itself."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        inner = annotation.slice
        return _type_of(inner.elts[0]) if isinstance(inner, ast.Tuple) else annotation
    return annotation


def _installed(file: str) -> bool:
    return any(Path(file).resolve().is_relative_to(folder) for folder in _folders()) or bool(
        {"site-packages", "dist-packages"} & set(Path(file).parts)
    )


@cache
def _folders() -> list[Path]:
    named = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [
        Path(folder).resolve() for folder in (*named, *site.getsitepackages(), site.getusersitepackages())
    ]
