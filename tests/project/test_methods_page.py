"""The page of methods: made from the classes, and up to date."""

from __future__ import annotations

import pytest
import torch

from benchmarks import selection
from scripts import methods_page
from stsimdiff.compressors import BUILTIN


def test_the_page_is_what_the_classes_say() -> None:
    assert methods_page.main(["--check"]) == 0, "run `python -m scripts.methods_page`"


def test_what_the_page_says() -> None:
    text = methods_page.PAGE.read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(BUILTIN)
    # FastV by its paper: text attention after layer 2, of 28; seven recordings.
    row = "| [fastv](#fastv) | ECCV 2024, arXiv 2403.06764 | before layer 2 | attention | official | 7 |"
    assert any(line.startswith(row) for line in text.splitlines())
    assert "* Authors' code: pkunlp-icler/FastV. Licence: not known;" in text
    assert "* `tau_sim` (default `0.8`): " in text


def test_every_method_has_a_row_with_its_cost() -> None:
    lines = [
        line.split(" | ") for line in methods_page.PAGE.read_text().splitlines() if line.startswith("| [")
    ]
    assert [line[0].split("](#")[0][3:] for line in lines] == list(BUILTIN)
    assert {len(line) for line in lines} == {len(methods_page.HEADINGS + methods_page.COSTS)}
    measured = {"method": "fastvid", "scene": "mixed", "selection_seconds": 0.5, "time_over_copy": 17.24}
    measured |= {
        "time_over_frame_product": 1.9,
        "time_over_own_products": 1.3,
        "own_over_frame_product": 0.79,
    }
    found = methods_page.costs({"rows": [measured, measured | {"scene": "static", "selection_seconds": 9.0}]})
    assert found["fastvid"] == ["500", "17.2", "1.90", "1.30", "0.79"]
    assert found["none"] == ["-"] * 5 and found["scissor"] == ["?"] * 5
    # Products too small to be what a method's time is measured by.
    few = methods_page.costs({"rows": [measured | {"own_over_frame_product": 0.001}]})
    assert few["fastvid"][3:] == ["-", "0.00"]


def test_which_selections_are_over_the_limit() -> None:
    row = {
        "method": "evs",
        "time_over_copy": 8.1,
        "time_over_own_products": None,
        "time_over_frame_product": 0.9,
    }
    assert selection.within(row | {"time_over_copy": 7.9}) and not selection.within(row)
    assert selection.within(row | {"time_over_own_products": 1.9})
    assert not selection.within(row | {"time_over_own_products": 2.1, "time_over_frame_product": 2.1})
    # Pair by pair, without a product.
    pairs = row | {"method": "sttm"}
    assert selection.within(pairs) and not selection.within(pairs | {"time_over_frame_product": 2.1})


def test_products_are_timed_and_counted() -> None:
    with selection.Products("cpu") as products:
        torch.rand(3, 5) @ torch.rand(5, 7)
        torch.cdist(torch.rand(1, 30, 4), torch.rand(1, 40, 4))
    assert products.adds == 3 * 5 * 7 + 30 * 40 * 4 and products.seconds > 0


def test_a_page_that_lags_behind_is_found(tmp_path, monkeypatch) -> None:
    old = tmp_path / "methods.md"
    old.write_text(methods_page.PAGE.read_text().replace("before layer 2", "before layer 3", 1))
    monkeypatch.setattr(methods_page, "PAGE", old)
    assert methods_page.main(["--check"]) == 1
    assert methods_page.main([]) == 0 and methods_page.main(["--check"]) == 0


def test_a_method_without_a_paper_in_the_notice_is_an_error() -> None:
    with pytest.raises(ValueError, match="NOTICE names no paper of New"):
        methods_page.sources("New: some/where\n    A. Nobody. Licence: none.\n")
