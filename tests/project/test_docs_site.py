"""The documentation's site: pages from the code, links that lead to the same place as on GitHub, nothing broken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.processes import python
from scripts import docs_site


@pytest.fixture(scope="module")
def options() -> str:
    return docs_site.options_page()


@pytest.mark.parametrize(
    "row",
    [
        "| `limit` | `null` | a whole number from 1 or null | only the first so many questions; null: all |",
        "| `cache.max_gb` | `0` | a number from 0 | in memory, between the passes of one command; 0: only the video "
        "being answered |",
        "| `budget.retention` | `0.3` | a number in (0, 1] | in (0, 1] |",
        "| `model.threads` | `1` | a whole number from 1 to 1024 or null | threads of torch on the CPU; null: as many "
        "as torch chooses |",
        # An option of one family alone.
        "| `model.positions` | `released` | released or stock | text after the video: released (largest position + 1) "
        "or stock (transformers 5) |",
        "| `compressor.edges` | `both` | both, spatial or temporal | which neighbours are joined: both, spatial or "
        "temporal |",
        "| `logger.mode` | `null` | offline, online or null | null: offline, or nothing with "
        "WANDB_MODE=disabled; or offline, online |",
    ],
)
def test_an_option_stands_with_its_value_type_and_comment(options: str, row: str) -> None:
    assert row in options.splitlines()


def test_every_file_of_configs_has_its_place(options: str) -> None:
    headings = set(re.findall(r"^### (.*)$", options, re.MULTILINE))
    groups = {path.parent.name for path in (ROOT / "configs").glob("*/*.yaml")} | {"hydra/launcher"}
    expected = {
        f"{group}: all" if path.stem == "_base" else f"{group}={path.stem}"
        for group in groups
        for path in (ROOT / "configs" / group).glob("*.yaml")
    }
    assert headings == expected and len(headings) > 50
    assert "class '" not in options and "typing." not in options


def test_an_option_without_a_comment_stops_the_build(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yaml"
    file.write_text("kind: tokens\nretention: 0.3                 # in (0, 1]\n")
    assert "`budget.retention`" in docs_site.table(file, "budget", docs_site.hints(docs_site.Budget))
    file.write_text("kind: tokens\nretention: 0.3\n")
    with pytest.raises(ValueError, match="no comment explains retention"):
        docs_site.table(file, "budget", docs_site.hints(docs_site.Budget))
    file.write_text("kind: tokens\nshare: 0.3    # of the tokens\n")
    with pytest.raises(ValueError, match="explains share, or no type"):
        docs_site.table(file, "budget", docs_site.hints(docs_site.Budget))


@pytest.mark.parametrize(
    ("path", "text", "site"),
    [
        ("README.md", "[a](docs/clusters.md#x)", "[a](clusters.md#x)"),
        ("README.md", "![a](docs/overlay.png)", "![a](overlay.png)"),
        ("README.md", "[a](LICENSE)", "[a](repository/LICENSE.md)"),
        ("docs/report.md", '<img src="report-phone.png">', '<img src="report-phone.png">'),
        ("docs/your-method.md", "[a](../README.md#table)", "[a](index.md#table)"),
        ("docs/x.md", "[a](README.md)", "[a](index.md)"),
        ("docs/x.md", "[a](../configs)", "[a](options.md)"),
        ("docs/x.md", "[a](../stsimdiff/graph.py)", "[a](repository/stsimdiff/graph.py.md)"),
        ("CONTRIBUTING.md", "[a](docs/design.md)", "[a](../design.md)"),
        ("tests/golden/README.md", "[a](../../docs/design.md)", "[a](../../../design.md)"),
        # Neither addresses, nor code, nor a link that leads nowhere, which MkDocs then refuses.
        ("README.md", "[a](https://x.org/docs) [b](#c)", "[a](https://x.org/docs) [b](#c)"),
        ("README.md", "`f[0](LICENSE)`\n```\n[a](LICENSE)\n```", "`f[0](LICENSE)`\n```\n[a](LICENSE)\n```"),
        ("docs/x.md", "[a](../nowhere.py)", "[a](../nowhere.py)"),
    ],
)
def test_a_link_leads_to_the_same_place_as_on_github(path: str, text: str, site: str) -> None:
    assert docs_site.relinked(path, text) == site


def test_a_notebook_is_its_cells_without_their_pictures() -> None:
    page = docs_site.page_of("examples/compress_and_ask.ipynb")
    assert page.startswith("# Compress a video, ask, and look\n") and len(page) < 5000
    assert "\n```python\nfrom pathlib import Path\n" in page and "](../docs/your-method.md)" in page


def test_a_place_on_the_site_is_that_of_one_file() -> None:
    for path in (
        "README.md",
        "docs/design.md",
        "CONTRIBUTING.md",
        "stsimdiff/graph.py",
        "tests/golden/README.md",
    ):
        assert docs_site.origin(docs_site.place(path)) == path


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation with a page of its own whose links are broken."""
    folder = tmp_path_factory.mktemp("copy")
    for name in (
        "stsimdiff",
        "configs",
        "examples",
        "tests",
        "results",
        "LICENSE",
        "CONTRIBUTING.md",
        "README.md",
        "mkdocs.yml",
    ):
        (folder / name).symlink_to(ROOT / name)
    for name in ("scripts", "docs"):
        (folder / name).mkdir()
        for file in (ROOT / name).iterdir():
            if file.suffix != ".py" and file.name != "__pycache__":
                (folder / name / file.name).symlink_to(file)
    (folder / "scripts" / "docs_site.py").write_text((ROOT / "scripts" / "docs_site.py").read_text())
    index = (ROOT / docs_site.INDEX).read_text()
    (folder / "docs" / "README.md").unlink()
    (folder / "docs" / "README.md").write_text(f"{index}\n[broken](broken.md)\n")
    (folder / "docs" / "broken.md").write_text("# B\n\n[a](../gone.py) [b](design.md#gone) [c](#neither)\n")
    return folder


def test_a_broken_link_stops_the_build(copy: Path) -> None:
    done = python("-m", "mkdocs", "build", "--strict", "--site-dir", str(copy / "site"), cwd=copy)
    assert done.returncode == 1, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 3 and all("broken.md" in line for line in warnings), done.stderr
    assert "../gone.py" in warnings[0] and "#gone" in done.stderr and "#neither" in done.stderr
