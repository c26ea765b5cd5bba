"""Configurations that differ in plain values alone are composed once, and are those that Hydra would compose."""

from __future__ import annotations

import hydra
import pytest
from hydra.errors import ConfigCompositionException

from stsimdiff.config.sweep import composed, without_hydra
from stsimdiff.launchers.base import register
from stsimdiff.resources import folder


@pytest.fixture
def compose():
    register()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder("configs"))):
        made = []

        def one(words):
            made.append(list(words))
            return without_hydra(hydra.compose("config", overrides=list(words)))

        one.made = made
        yield one


def test_only_what_differs_in_groups_is_composed(compose) -> None:
    jobs = [
        [f"compressor={method}", f"budget.retention={share}", "hydra.verbose=true", "video.workers=2"]
        for method in ("fastv", "chain", "st_simdiff")
        for share in ("0.1", "0.3", "1")
    ]
    jobs += [["compressor=chain", f"compressor.methods={methods}"] for methods in ("[evs,fastv]", "[random]")]
    jobs += [["compressor=st_simdiff", f"+note={{{name}: 1}}", "run='a.b=c'"] for name in ("a", "b")]
    jobs += [
        ["compressor=st_simdiff", "budget.kind=compute", f"results=${{oc.env:{name},x}}"] for name in "ab"
    ]
    found = list(composed(jobs, compose))
    made = len(compose.made)
    assert made == 3 + 1 + 2 + 2
    assert found == [compose(job) for job in jobs]
    assert [cfg.budget.retention for cfg in found[:3]] == [0.1, 0.3, 1]
    found[0].budget.retention = 0.7
    assert found[1].budget.retention == 0.3


def test_what_does_not_compose_is_refused_by_hydra(compose) -> None:
    jobs = [["compressor=fastv", f"budget.retentoin={share}"] for share in ("0.1", "0.3")]
    with pytest.raises(ConfigCompositionException, match="budget.retentoin"):
        list(composed(jobs, compose))
