"""Every built-in method on every family's miniature, through a sweep: one question each under either kind of budget.

That dropping equals masking on each family is a check of the kit, which ``test_compressors.py`` runs for every method.
"""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, open_dict

from stsimdiff import models, read
from stsimdiff.compressors import BUILTIN
from stsimdiff.compressors.dycoke import DyCoke
from stsimdiff.errors import BudgetError
from stsimdiff.kit import checks
from stsimdiff.kit.running import CompressorCase
from stsimdiff.launchers.base import configurations
from stsimdiff.launchers.in_process import run_configurations
from stsimdiff.models.kit import miniatures
from stsimdiff.report import figures

METHODS = [name for name in BUILTIN if name not in ("none", "no_video")]
BUDGETS = {"tokens": 0.3, "compute": 0.75}


@pytest.fixture(scope="module")
def sweep() -> list[DictConfig]:
    """The arms, composed once: only the model differs between the tests, and composing takes longer than answering."""
    arms = [
        f"compressor={','.join(METHODS)} budget={kind} budget.retention={retention}"
        for kind, retention in BUDGETS.items()
    ]
    return configurations(["limit=1", "run=all", "logger=none", f"arms={arms}"])


@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_sweep_answers_within_every_budget(family, sweep, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "FORMATS", ())
    assert miniatures.main([family, "weights"]) == 0
    given = [f"model={family}", "model.path=weights", "model.frames=8", "logger=none"]
    (one,) = configurations(given)
    for arm in sweep:
        with open_dict(arm):
            arm.model = one.model
    run_configurations(sweep)
    stored = read(tmp_path / "results" / "all")
    assert sorted(zip(stored["method"], stored["budget"], strict=True)) == sorted(
        (method, kind) for method in METHODS for kind in BUDGETS
    )
    # What random weights say may be a blank, but is said.
    assert not stored["failed"].any() and stored["answer"].notna().all()
    for kind, retention in BUDGETS.items():
        found = stored[stored["budget"] == kind].set_index("method")[f"retention_{kind}"]
        assert found.to_dict() == pytest.approx(dict.fromkeys(METHODS, retention), rel=0.02)
    # DyCoke's first stage leaves one frame in four whole.
    with pytest.raises(BudgetError, match=r"retention=0.1 cannot be met by DyCoke: .* allowed: 0.25 to 1"):
        run_configurations(configurations([*given, "compressor=dycoke", "budget.retention=0.1"]))


@pytest.mark.parametrize("family", models.FAMILIES)
def test_dropping_equals_masking_without_the_stage_that_hides_cached_keys(family) -> None:
    """The kit leaves DyCoke out, whose second stage acts while decoding; the first does so in the prefill."""
    said = checks.dropping_equals_masking(CompressorCase(DyCoke(dycoke_p=0)), family)
    assert said is not None and " of " in said
