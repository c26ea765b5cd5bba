"""Hooks by which MkDocs builds the documentation's site (`mkdocs.yml`, ``make docs``).

The texts stay where they are: the pages of ``docs/``, the README as the first page, and each other file of the
repository that a page links to. Every option and the API are pages made from the code while the site is built. The
order of the pages is that of the index, ``docs/README.md``.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import griffe
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from omegaconf import OmegaConf
from pymdownx.slugs import slugify
from pymdownx.superfences import fence_code_format

from stsimdiff import compressors, models
from stsimdiff.budget import Budget
from stsimdiff.config.benchmark import BenchmarkSettings
from stsimdiff.config.checks import Folder
from stsimdiff.config.model import ModelSettings, own_hint
from stsimdiff.config.settings import LOGGERS, PARTS, Settings
from stsimdiff.config.words import groups
from stsimdiff.schema import said, settable, written

ROOT = Path(__file__).parents[1]
INDEX = "docs/README.md"
OPTIONS = "options.md"
API = ("", ".api", ".compressors.base", ".tokens", ".budget", ".models.base")
"""The public modules of the package."""
LINK = re.compile(
    r"^```.*?^```|`[^`\n]+`|(?:\]\(|(?:src|href)=\")(?P<link>[^)#\s\"]+)", re.MULTILINE | re.DOTALL
)
"""A link of a page, in Markdown or HTML; or code, which holds none."""
OUTSIDE = re.compile(r"[a-z]+:|/|#")
KEY = re.compile(r"( *)([\w/]+): ?(.*)")
TYPED = {"benchmark": BenchmarkSettings, "budget": Budget}


class Roles(griffe.Extension):
    """Cross references of docstrings, as ``:func:`name```, become code: Markdown has no such roles."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """The package itself, whose stub is merged into it."""
        self.on_object(obj=pkg)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Headings get the anchors that GitHub gives them, diagrams are drawn, and the index is the navigation."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    fence = {"name": "mermaid", "class": "mermaid", "format": fence_code_format}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    linked = [place(path) for path in dict.fromkeys(links(INDEX, (ROOT / INDEX).read_text(encoding="utf-8")))]
    pages = [page for page in linked if page != "index.md"]
    api = [f"api/stsimdiff{module}.md" for module in API]
    config.nav = [{"Getting started": "index.md"}, *pages, {"Every option": OPTIONS}, {"API": api}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in ``docs/``."""
    files.remove(files.src_uris["README.md"])
    made = {OPTIONS: options_page()} | {
        f"api/stsimdiff{module}.md": f"# stsimdiff{module}\n\n::: stsimdiff{module}\n" for module in API
    }
    waiting, seen = [INDEX], set[str]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        text = page_of(path)
        if not path.startswith("docs/"):
            made.setdefault(place(path), text)
        waiting += [to for to in links(path, text) if place(to).endswith(".md")]
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point the links of a page at the site's pages."""
    path = origin(page.file.src_uri)
    return markdown if path is None else relinked(path, markdown)


def relinked(path: str, text: str) -> str:
    """The text of a file of the repository with its links as the site has them."""
    here = posixpath.dirname(place(path))

    def link(match: re.Match[str]) -> str:
        to = target(path, match["link"])
        if to is None:
            return match[0]
        return match[0][: match.start("link") - match.start()] + posixpath.relpath(place(to), here or ".")

    return LINK.sub(link, text)


def links(path: str, text: str) -> Iterator[str]:
    """The files and folders of the repository that a file links to."""
    for match in LINK.finditer(text):
        if to := target(path, match["link"]):
            yield to


def target(path: str, link: str | None) -> str | None:
    """The file or folder of the repository that a link of one of its files names; ``None`` for any other link."""
    if link is None or OUTSIDE.match(link):
        return None
    to = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return to if (ROOT / to).exists() and not to.startswith("..") else None


def place(path: str) -> str:
    """Where the site has a file or folder of the repository."""
    if path in ("README.md", INDEX):
        return "index.md"
    if path == "configs":
        return OPTIONS
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def origin(uri: str) -> str | None:
    """The file of the repository behind a page of the site; ``None`` for one that is made."""
    if uri == OPTIONS or uri.startswith("api/"):
        return None
    if uri.startswith("repository/"):
        path = uri.removeprefix("repository/")
        return path if (ROOT / path).exists() else path.removesuffix(".md")
    return "README.md" if uri == "index.md" else f"docs/{uri}"


def page_of(path: str) -> str:
    """A file of the repository as Markdown; of a notebook its cells; of a folder its README, or what lies in it."""
    file = ROOT / path
    if file.suffix == ".md":
        return file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        sources = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells]
        return "\n\n".join(f"```python\n{text}\n```" if code else text for text, code in sources) + "\n"
    if file.is_dir():
        names = "\n".join(sorted(one.name for one in file.iterdir() if not one.name.startswith((".", "__"))))
        return f"# {path}\n\n```text\n{names}\n```\n"
    return f"# {path}\n\n````{file.suffix.removeprefix('.')}\n{file.read_text(encoding='utf-8')}````\n"


def options_page() -> str:
    """Every option: from the types of the settings, and the values and comments of ``configs/``."""
    form = {"results": Folder, "data": Folder | None, "label": str | None}
    for key, hint in hints(Settings).items():
        inner = hints(hint) if is_dataclass(hint) else {}
        form |= {f"{key}.{name}": one for name, one in inner.items()} or {key: hint}
    parts = [
        "# Every option",
        "Made from `configs/` and the types that every value is checked by. `key=value` on the command line sets one. "
        "`group=NAME` chooses a file of a group: its table says what the file sets, and what it leaves out is as in "
        "*all*.",
        "## The form",
        table(ROOT / "configs" / "config.yaml", "", form),
    ]
    for group in (*groups(), "hydra/launcher"):
        parts.append(f"## {group}")
        for file in sorted((ROOT / "configs" / group).glob("*.yaml")):
            lead = re.match(r"(?:# @.*\n)?((?:# .*\n)*)", file.read_text(encoding="utf-8"))
            parts += [
                f"### {group}: all" if file.stem == "_base" else f"### {group}={file.stem}",
                re.sub("^# ", "", lead[1] if lead else "", flags=re.MULTILINE),
                "" if group == "experiment" else table(file, group, types(group, file)),
            ]
    return "\n\n".join(parts) + "\n"


def types(group: str, file: Path) -> dict[str, Any]:
    """The annotations of what a file of a group sets; none where the values are checked elsewhere."""
    if group == "model":
        family = values_of(file)["family"]
        own = {} if family == "???" else models.options_of(family)
        return hints(ModelSettings) | {name: own_hint(values) for name, values in own.items()}
    if group == "compressor":
        return hints(compressors.resolve(file.stem)) if file.stem in compressors.BUILTIN else {}
    if group == "logger":
        return hints(LOGGERS[file.stem])
    return hints(TYPED[group]) if group in TYPED else {}


def hints(cls: Any) -> dict[str, Any]:
    """The annotations of the fields that a configuration sets."""
    found = get_type_hints(cls, include_extras=True)
    return {name: found[name] for name in settable(cls)}


def values_of(file: Path) -> Any:
    """What a file of ``configs/`` says, as it is written."""
    return OmegaConf.to_container(OmegaConf.load(file), resolve=False)


def table(file: Path, group: str, allowed: Mapping[str, Any]) -> str:
    """The keys of a file of ``configs/``: value, what is allowed, what it is for.

    Raises:
        ValueError: for a key that the types do not know, or that no comment explains.
    """
    shared = [one for name in ("_base", "default") if (one := file.with_name(f"{name}.yaml")).is_file()]
    explained = {key: text for one in (*shared, file) for key, text in comments(one).items() if text}
    lines = ["| key | value | allowed | meaning |", "| --- | --- | --- | --- |"]
    for key, value in flat(values_of(file), allowed):
        # What only says which file or class this is.
        if key.partition(".")[0] in ("defaults", "hydra", "_target_") or value == file.stem:
            continue
        if allowed and not (key in explained and (key in allowed or key in PARTS)):
            raise ValueError(f"{file}: no comment explains {key}, or no type says what it takes")
        path = key if group in ("", "protocol") else f"{group.replace('/', '.')}.{key}"
        words = said(allowed[key]) if key in allowed else ""
        cells = [f"`{path}`", f"`{shown(value)}`", plain(words), plain(explained.get(key, ""))]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) if lines[2:] else ""


def plain(text: str) -> str:
    """Text in which an angle bracket outside code is no HTML."""
    return re.sub(r"(`[^`]*`)|<", lambda match: match[1] or "&lt;", text)


def flat(values: Any, whole: Container[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots, and their values; what ``whole`` names is one value."""
    for key, value in values.items():
        if isinstance(value, dict) and value and key not in whole:
            yield from flat(value, (), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(value: Any) -> str:
    """A value as a line of YAML."""
    if isinstance(value, list | dict):
        return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
    return "required" if value == "???" else written(value) or '""'


def comments(file: Path) -> dict[str, str]:
    """What the comments of a file of ``configs/`` say of its keys, lines below that go on joined."""
    found: dict[str, str] = {}
    path: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if path and (more := re.match(r" +# (.*)", line)):
            found[".".join(path)] += f" {more[1]}"
        elif key := KEY.match(line):
            path[len(key[1]) // 2 :] = [key[2]]
            found[".".join(path)] = key[3].partition("# ")[2].strip()
    return found
