"""The page of methods: made from the classes, and up to date."""

from __future__ import annotations

import pytest

from scripts import methods_page
from stsimdiff.compressors import BUILTIN


def test_the_page_is_what_the_classes_say() -> None:
    assert methods_page.main(["--check"]) == 0, "run `python -m scripts.methods_page`"


def test_what_the_page_says() -> None:
    text = methods_page.PAGE.read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(BUILTIN)
    # FastV by its paper: text attention after layer 2, of 28; seven recordings.
    row = "| [fastv](#fastv) | ECCV 2024, arXiv 2403.06764 | before layer 2 | attention | official | 7 |"
    assert row in text.splitlines()
    assert "* Authors' code: pkunlp-icler/FastV. Licence: not known;" in text
    assert "* `tau_sim` (default `0.8`): " in text


def test_a_page_that_lags_behind_is_found(tmp_path, monkeypatch) -> None:
    old = tmp_path / "methods.md"
    old.write_text(methods_page.PAGE.read_text().replace("before layer 2", "before layer 3", 1))
    monkeypatch.setattr(methods_page, "PAGE", old)
    assert methods_page.main(["--check"]) == 1
    assert methods_page.main([]) == 0 and methods_page.main(["--check"]) == 0


def test_a_method_without_a_paper_in_the_notice_is_an_error() -> None:
    with pytest.raises(ValueError, match="NOTICE names no paper of New"):
        methods_page.sources("New: some/where\n    A. Nobody. Licence: none.\n")
