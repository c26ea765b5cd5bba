"""What every compression method must do, and what each one promises of its own."""

import importlib
import inspect
import shutil
from contextlib import nullcontext
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from helpers.fake_engine import LAYERS, drive, layout_for, reach, video
from stsimdiff import compressors, registry
from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor
from stsimdiff.compressors.dart import DART
from stsimdiff.compressors.evs import EVS
from stsimdiff.compressors.fastv import FastV
from stsimdiff.compressors.fastvid import FastVID
from stsimdiff.compressors.flashvid import FlashVID
from stsimdiff.compressors.framefusion import FrameFusion
from stsimdiff.compressors.holitom import HoliTom
from stsimdiff.compressors.prumerge import PruMerge
from stsimdiff.compressors.prunevid import PruneVid
from stsimdiff.compressors.pyramiddrop import PyramidDrop
from stsimdiff.compressors.scissor import Scissor
from stsimdiff.compressors.sparsevlm import SparseVLM
from stsimdiff.compressors.st_simdiff import STSimDiff
from stsimdiff.compressors.sttm import STTM
from stsimdiff.compressors.vidcom2 import VidCom2
from stsimdiff.compressors.visionzip import VisionZip
from stsimdiff.errors import BudgetError, ConfigError
from stsimdiff.kit import checks
from stsimdiff.kit.running import CompressorCase
from stsimdiff.resources import folder
from stsimdiff.tokens import Grid, Reason, VideoTokens

READ_NO_FEATURES = {"none", "no_video"}
METHODS = list(compressors.BUILTIN)


def counts_as_released(method: Compressor) -> bool:
    return getattr(method, "released_layers", "auto") != "auto" or getattr(method, "as_released", False)


VARIANTS = [
    STSimDiff(rule="paper"),
    STSimDiff(edges="spatial", tau_diff="p95"),
    STSimDiff(edges="temporal", difference=False, reduction="max"),
    STSimDiff(similarity=False),
    STSimDiff(similarity=False, difference=False),
    STSimDiff(split_above="sqrt", layer=0),
    STSimDiff(released_layers=28),
    FastV(layer=1, queries="all"),
    FrameFusion(ratio_lower_bound=0.0),
    FastVID(variant="video", stprune_d=1.0, dtm_p=1),
    FastVID(variant="qwen", dyseg_c=1, stprune_d=0.0),
    HoliTom(merge_ratio=0),
    HoliTom(max_window=1, layer=1, merge_ratio=0.8),
    PruneVid(tau=0.3, temporal_segment_ratio=1.0, cluster_ratio=0.2, selected_layer=3),
    FlashVID(alpha=0.0, temporal_threshold=0.3, min_segment_num=1),
    FlashVID(alpha=1.0, token_selection_method="div", pruning_layer=2),
    FlashVID(token_selection_method="attn", temporal_threshold=1.0),
    VisionZip(dominant=1, contextual=1),
    VisionZip(contextual=0),
    PruMerge(plus=True),
    EVS(as_released=True),
    PyramidDrop(stages=1, layers=[2]),
    PyramidDrop(stages=2, layers=[3, 20]),
    DART(pivot_text_token=0, pivot_image_token=1, layer=1),
    SparseVLM(retain_tokens=64, layers=[1, 3], recycle=0.5, tokens_per_cluster=3),
    SparseVLM(version="v2", heads=2, retain_tokens=96),
    VidCom2(as_released=True),
    STTM(slow_version=True, weighted_avg=True, root_level=0, layer=0, head_dim=4),
    Scissor(as_released=True, epsilon=0.5),
]
ALL = [pytest.param(compressors.resolve(name)(), id=name) for name in METHODS] + [
    pytest.param(method, id=f"variant{i}") for i, method in enumerate(VARIANTS)
]


@pytest.mark.parametrize("check", checks.CHECKS)
@pytest.mark.parametrize("method", ALL)
def test_every_method_passes_the_kit(method, check):
    # Ours meet a budget to the token, save where they count as released code does, which is a budget of its own.
    try:
        checks.CHECKS[check](
            CompressorCase(method, tolerance=float("inf") if counts_as_released(method) else 0.0)
        )
    except checks.CheckSkipped as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("method", [one for one in ALL if reach(one.values[0], Grid(8, 6, 7))])
@pytest.mark.parametrize("grid", [Grid(8, 6, 7), Grid(1, 5, 4), Grid(9, 1, 1), Grid(1, 1, 1)], ids=str)
@pytest.mark.parametrize("retention", [0.02, 0.3, 0.5, 0.97])
def test_budgets_below_what_a_method_reaches_are_refused(method, grid, retention):
    budget = Budget("tokens", retention)
    count = max(1, int(retention * grid.tokens + 0.5))
    low = count < reach(method, grid) or retention < reach(method, Grid(4, 1, 1)) / 4
    with pytest.raises(BudgetError, match="(stays? whole|reaches)") if low else nullcontext():
        method.check(budget, LAYERS)
        method.start(layout_for(grid), budget)


@pytest.mark.parametrize(("name", "kept"), [("none", 1.0), ("no_video", 0.0)])
@pytest.mark.parametrize("kind", ["tokens", "compute"])
@pytest.mark.parametrize("retention", [0.02, 0.5, 1.0])
def test_both_ends_ignore_the_budget(name, kept, kind, retention):
    for grid in (Grid(8, 6, 7), Grid(1, 1, 1)):
        run = compressors.resolve(name)().start(layout_for(grid), Budget(kind, retention))
        entering, left = drive(run, video("mixed", grid), layout_for(grid))
        assert left == list(range(int(kept * grid.tokens))) and entering == [kept * grid.tokens] * LAYERS


@pytest.mark.parametrize("method", [method for method in VARIANTS if counts_as_released(method)])
@pytest.mark.parametrize("retention", [0.3, 0.6, 1.0])
def test_the_released_constant_misses_a_budget_of_compute_by_little(method, retention):
    """The released formula takes stage one for one layer where it is two."""
    grid = Grid(8, 6, 7)
    run = method.start(layout_for(grid), Budget("compute", retention))
    entering, kept = drive(run, video("mixed", grid), layout_for(grid))
    assert sum(entering) / (LAYERS * grid.tokens) == pytest.approx(retention, rel=0.05)
    assert kept == list(range(grid.tokens)) or retention < 1 or getattr(method, "as_released", False)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_bad_features_are_refused_with_their_place(method, value):
    if name_of(method) in READ_NO_FEATURES:
        pytest.skip("reads no features")
    grid = Grid(3, 4, 5)
    features, layout = video("mixed", grid), layout_for(grid)
    features[37, 3] = value
    with pytest.raises(ValueError, match=r"layer \d+: 1 of 60 video tokens .* raster index 37"):
        drive(method.start(layout, Budget("tokens", 0.5)), features, layout)


def name_of(method: Compressor) -> str:
    path = f"{type(method).__module__}.{type(method).__qualname__}"
    return next(name for name, target in compressors.BUILTIN.items() if target == path)


WRONG = [
    ("st_simdiff", {"rule": "new"}, "rule=new.*released, paper"),
    ("st_simdiff", {"tau_sim": 1.2}, r"tau_sim=1.2.*\[-1, 1\].*0.8"),
    ("st_simdiff", {"tau_sim": "p95"}, "tau_sim='p95'"),
    ("st_simdiff", {"tau_sim": float("nan")}, "tau_sim=nan"),
    ("st_simdiff", {"tau_diff": -3}, "tau_diff=-3.*p95"),
    ("st_simdiff", {"tau_diff": "95"}, "tau_diff='95'.*p0 to p100"),
    ("st_simdiff", {"tau_diff": "p101"}, "tau_diff='p101'"),
    ("st_simdiff", {"tau_diff": "pxx"}, "tau_diff='pxx'"),
    ("st_simdiff", {"tau_diff": "p-0.5"}, "tau_diff='p-0.5'"),
    ("st_simdiff", {"tau_diff": "p100.5"}, "tau_diff='p100.5'"),
    ("st_simdiff", {"tau_diff": "q95"}, "tau_diff='q95'"),
    ("st_simdiff", {"tau_diff": True}, "tau_diff=True"),
    ("st_simdiff", {"tau_sim": -1.01}, "tau_sim=-1.01"),
    ("st_simdiff", {"community": "louvain", "tau_sim": -0.01}, "tau_sim=-0.01"),
    ("st_simdiff", {"layer": True}, "layer=True"),
    ("fastv", {"layer": True}, "layer=True"),
    ("visionzip", {"contextual": -1}, "contextual=-1"),
    ("visionzip", {"dominant": True}, "dominant=True"),
    ("random", {"seed": True}, "seed=True"),
    ("st_simdiff", {"edges": "all"}, "edges=all.*both, spatial, temporal"),
    ("st_simdiff", {"community": "kmeans"}, "community=kmeans.*connected, louvain, leiden"),
    ("st_simdiff", {"community": "leiden", "tau_sim": -0.5}, "tau_sim=-0.5.*community=leiden.*0.8"),
    ("st_simdiff", {"split_above": 100}, "split_above=100.*off, sqrt"),
    ("st_simdiff", {"reduction": "sum"}, "reduction=sum.*mean, max"),
    ("st_simdiff", {"similarity": "yes"}, "similarity='yes'.*true, false"),
    ("st_simdiff", {"difference": 1}, "difference=1"),
    ("st_simdiff", {"pruning": "no"}, "pruning='no'.*true, false"),
    ("st_simdiff", {"layer": -1}, "layer=-1"),
    ("st_simdiff", {"released_layers": 1}, "released_layers=1.*auto.*28"),
    ("st_simdiff", {"released_layers": True}, "released_layers=True"),
    ("fastv", {"layer": 0}, "layer=0.*for example 2"),
    ("fastv", {"layer": 2.0}, "layer=2.0"),
    ("fastv", {"queries": "first"}, "queries=first.*last, all"),
    ("vidcom2", {"temperature": 0}, "temperature=0 is.*a number from 1e-06; for example 0.01"),
    ("vidcom2", {"channels": 1.5}, r"channels=1.5.*\[0, 1\]; for example 0.5"),
    ("vidcom2", {"as_released": "yes"}, "as_released='yes'.*true, false"),
    ("divprune", {"as_released": None}, "as_released=None.*true, false"),
    ("scissor", {"tau": 1.2}, r"tau=1.2.*auto, or a number in \[-1, 1\]; for example 0.9"),
    ("scissor", {"tau": "p90"}, "tau='p90'"),
    ("scissor", {"epsilon": 0}, "epsilon=0 is out of range"),
    ("scissor", {"as_released": 0}, "as_released=0.*true, false"),
    ("sttm", {"threshold": "auto"}, "threshold='auto'.*for example 0.85"),
    ("sttm", {"temporal_threshold": 3}, "temporal_threshold=3.*auto, or a number"),
    ("sttm", {"root_level": 0.5}, "root_level=0.5.*for example 1"),
    ("sttm", {"head_dim": -1}, "head_dim=-1.*for example 128"),
    ("sttm", {"layer": -1}, "layer=-1.*allowed: 0, 1"),
    ("sttm", {"slow_version": 1}, "slow_version=1.*true, false"),
    ("evs", {"as_released": 1}, "as_released=1.*true, false"),
    ("framefusion", {"tau_sim": 2}, r"tau_sim=2.*\[-1, 1\].*0.6"),
    ("framefusion", {"ratio_lower_bound": -0.1}, r"ratio_lower_bound=-0.1.*\[0, 1\].*0.1"),
    ("visionzip", {"dominant": -1}, "dominant=-1.*for example 54"),
    ("visionzip", {"dominant": 0, "contextual": 0}, "keep nothing"),
    ("prumerge", {"plus": 1}, "plus=1.*true, false"),
    ("pyramiddrop", {"stages": 0}, "stages=0.*1, 2, ...; for example 3"),
    ("pyramiddrop", {"layers": [8, 4, 12]}, r"layers=\[8, 4, 12\].*ascending; for example \[8,16,24\]"),
    (
        "pyramiddrop",
        {"layers": [8, 16]},
        r"names 2 layers for compressor.stages=3; write compressor.stages=2",
    ),
    ("pyramiddrop", {"queries": "first"}, "queries='first'.*last, question"),
    ("pyramiddrop", {"positions": "new"}, "positions='new'.*kept, renumbered"),
    ("dart", {"layer": 0}, "layer=0.*1, 2, ...; for example 2"),
    ("dart", {"pivot_image_token": 0}, "pivot_image_token=0.*1, 2, ...; for example 4"),
    ("dart", {"pivot_text_token": True}, "pivot_text_token=True.*0, 1, ...; for example 4"),
    ("dart", {"as_released": 2}, "as_released=2.*true, false"),
    ("sparsevlm", {"version": "v3"}, "version=v3.*v1, v2"),
    (
        "sparsevlm",
        {"layers": [6, 2]},
        r"layers=\[6, 2\].*one to three layers from 0, ascending; for example \[2,6,15\]",
    ),
    ("sparsevlm", {"layers": [2, 6, 9, 15]}, r"layers=\[2, 6, 9, 15\].*one to three"),
    ("sparsevlm", {"layers": "all"}, "layers='all'.*auto, or a list"),
    ("sparsevlm", {"retain_tokens": 100}, "retain_tokens=100.*192, 128, 96, 64"),
    ("sparsevlm", {"recycle": 1}, r"recycle=1.*\[0, 1\); for example 0.3"),
    ("sparsevlm", {"tokens_per_cluster": 1}, "tokens_per_cluster=1.*from 2; for example 10"),
    ("sparsevlm", {"heads": 0}, "heads=0.*from 1; for example 14"),
    (
        "sparsevlm",
        {"version": "v2", "positions": "renumbered"},
        "positions=renumbered is for compressor.version=v1",
    ),
    ("dycoke", {"dycoke_p": 1.0}, r"dycoke_p=1.0.*\[0, 1\); for example 0.7"),
    ("dycoke", {"dycoke_l": 0}, "dycoke_l=0.*a whole number from 1; for example 3"),
    ("dycoke", {"similarity": 2}, r"similarity=2.*\[-1, 1\]; for example 0.9"),
    ("dycoke", {"as_released": 1}, "as_released=1.*true, false"),
    ("fastvid", {"variant": "new"}, "variant='new'.*onevision, video, qwen"),
    ("fastvid", {"dyseg_c": 0}, "dyseg_c=0.*for example 8"),
    ("fastvid", {"dtm_p": 1.5}, "dtm_p=1.5.*for example 4"),
    ("fastvid", {"dyseg_tau": 1.5}, r"dyseg_tau=1.5.*\[-1, 1\].*0.9"),
    ("fastvid", {"stprune_d": True}, "stprune_d=True.*0.4"),
    ("prunevid", {"tau": 1.5}, r"tau=1.5.*\[-1, 1\].*0.8"),
    ("prunevid", {"alpha": 0}, r"alpha=0.*\(0, 1\].*0.4"),
    ("prunevid", {"selected_layer": -1}, "selected_layer=-1.*auto, 0, 1"),
    (
        "flashvid",
        {"token_selection_method": "cls"},
        "token_selection_method='cls'.*attn_div_v2, attn_div, attn",
    ),
    ("flashvid", {"alpha": 1.5}, r"alpha=1.5.*\[0, 1\].*0.7"),
    ("flashvid", {"llm_retention_ratio": 0}, r"llm_retention_ratio=0.*\(0, 1\].*0.3"),
    ("flashvid", {"pruning_layer": 0}, "pruning_layer=0.*auto, 1, 2"),
    ("holitom", {"tau": 1.5}, r"tau=1.5.*\[-1, 1\].*0.8"),
    ("holitom", {"merge_ratio": 1}, r"merge_ratio=1.*\[0, 1\).*0.5"),
    ("holitom", {"layer": 0}, "layer=0.*auto, 1, 2"),
    ("holitom", {"neighbours": 0}, "neighbours=0.*for example 7"),
    ("framefusion", {"released_layers": 1}, "released_layers=1.*auto.*28"),
    ("random", {"seed": -1}, "seed=-1"),
    ("random", {"seed": "a"}, "seed='a'"),
]


@pytest.mark.parametrize(("name", "parameters", "message"), WRONG)
def test_wrong_parameters_are_named(name, parameters, message):
    with pytest.raises(ConfigError, match=message):
        compressors.resolve(name)(**parameters)


def test_budgets_that_no_video_can_meet_are_refused_before_loading():
    with pytest.raises(BudgetError, match=r"first 2 of 4 layers, which alone costs 0\.500"):
        FastV().check(Budget("compute", 0.5), 4)
    FastV().check(Budget("compute", 0.51), 4)
    FastV().check(Budget("tokens", 0.1), 4)
    FastV().check(Budget("compute", 0.01), None)
    with pytest.raises(BudgetError, match="last layer"):
        STSimDiff().check(Budget("compute", 0.5), 2)
    STSimDiff().check(Budget("compute", 0.5), 3)
    for method in (FastV(layer=4), STSimDiff(layer=4)):
        with pytest.raises(ConfigError, match="layer=4 does not exist in a model of 4 layers"):
            method.check(Budget("tokens", 0.5), 4)


# --- names
# -----------------------------------------------------------------------------------------------------


def test_a_method_of_ours_is_a_class_and_a_file_of_configs(tmp_path, monkeypatch):
    """Each class has its file and its row in the list; a further file is a further method."""
    home = Path(compressors.__file__).parent
    for module in home.glob("[a-z]*.py"):
        importlib.import_module(f"stsimdiff.compressors.{module.stem}")
    found, kinds = set(), [Compressor]
    while kinds:
        kinds += (kind := kinds.pop()).__subclasses__()
        if kind.__module__.startswith("stsimdiff.compressors.") and not inspect.isabstract(kind):
            found.add(f"{kind.__module__}.{kind.__qualname__}")
    assert found == set(compressors.BUILTIN.values())
    listed = (home / "README.md").read_text()
    assert all(
        f"| `{name}` | `{path.rpartition('.')[2]}` |" in listed for name, path in compressors.BUILTIN.items()
    )
    configs = shutil.copytree(folder("configs"), tmp_path / "configs")
    (configs / "compressor" / "new.yaml").write_text(
        "# A new one.\n_target_: stsimdiff.compressors.new.New\n"
    )
    monkeypatch.setattr(compressors, "folder", lambda name: tmp_path / name)
    assert compressors._builtin() == {**compressors.BUILTIN, "new": "stsimdiff.compressors.new.New"}


def test_every_name_leads_to_a_compressor():
    for name in METHODS:
        assert issubclass(compressors.resolve(name), Compressor), name
    assert compressors.names()[: len(METHODS)] == METHODS


def test_other_packages_add_names_by_entry_point(monkeypatch):
    points = {
        "theirs": EntryPoint("theirs", "stsimdiff.compressors.fastv:FastV", compressors.REGISTRY.group),
        "broken": EntryPoint("broken", "no_such_package:Method", compressors.REGISTRY.group),
        "fastv": EntryPoint("fastv", "no_such_package:Method", compressors.REGISTRY.group),
    }
    monkeypatch.setattr(registry, "entry_points", lambda group: list(points.values()))
    assert compressors.names() == [*METHODS, "broken", "theirs"]
    assert compressors.resolve("theirs") is FastV
    assert compressors.resolve("fastv") is FastV
    with pytest.raises(
        ConfigError, match="compressor=broken cannot be imported: .*registered as no_such_package:Method"
    ):
        compressors.resolve("broken")


def test_an_unknown_name_lists_the_right_ones():
    with pytest.raises(
        ConfigError, match=r"'st_simdif' is unknown; allowed: .*fastervlm, fastv.*did you mean st_simdiff"
    ):
        compressors.resolve("st_simdif")


def test_a_former_name_leads_to_the_present_one():
    with pytest.raises(ConfigError, match="compressor=temporal_difference is now called compressor=evs"):
        compressors.resolve("temporal_difference")
    assert set(compressors.RENAMED.values()) <= set(METHODS)
    assert not set(compressors.RENAMED) & set(METHODS)


def test_code_version_follows_the_source(own_module):
    text = "from stsimdiff.compressors.fastv import FastV\n\nclass Mine(FastV):\n    factor = 1\n"

    def version(body: str) -> str:
        own_module("my_method", body)
        return compressors.code_version(importlib.import_module("my_method").Mine)

    first = version(text)
    assert version(text) == first and len(first) == 12
    assert version(text.replace("1", "-21")) != first


def test_framefusion_merges_runs_into_their_first_token_and_counts_the_layers_before():
    grid, layout = Grid(4, 1, 2), layout_for(Grid(4, 1, 2), layers=10)
    features = torch.zeros(8, 3)
    # Place 0 stays the same from frame 0 to 2 and turns in frame 3; place 1 turns in frame 1 and stays.
    features[[0, 2, 4]] = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [6.0, 0, 0]])
    features[6, 2] = 1
    features[1, 0] = 4
    features[[3, 5, 7], 1] = torch.tensor([1.0, 2.0, 3.0])
    run = FrameFusion(tau_sim=0.9).start(layout, Budget("compute", 0.3))
    selection = run.at_input(VideoTokens.full(features, grid))
    assert selection.keep.tolist() == [0, 1, 3, 6]
    assert selection.features.tolist() == [[3, 0, 0], [4, 0, 0], [0, 2, 0], [0, 0, 1]]
    merged = [Reason(code).name for code in selection.reason[selection.keep].tolist()]
    assert merged == ["MERGED", "UNGROUPED", "MERGED", "UNGROUPED"]
    left = VideoTokens(selection.features, grid, selection.keep)
    assert run.between(0, left, None) is None  # nothing similar is left: the last layer that merges
    # (0.3 * 10 * 8 - 4 - 4) / 8 = 2 tokens are left for each layer after the first two.
    pruned = run.between(1, left, torch.tensor([[0.1, 0.4, 0.2, 0.3]]))
    assert pruned.keep.tolist() == [1, 3]
    assert run.between(2, left, None) is None


def test_framefusion_with_the_released_constant_counts_as_on_that_many_layers():
    """On a shallow model the constant gives the cascade that a model of 28 layers has by itself."""
    grid, budget = Grid(8, 6, 7), Budget("compute", 0.5)
    features = video("mixed", grid)
    deep, _ = drive(
        FrameFusion(tau_sim=0.95).start(layout_for(grid, 28), budget), features, layout_for(grid, 28)
    )
    constant = FrameFusion(tau_sim=0.95, released_layers=28).start(layout_for(grid, 12), budget)
    shallow, _ = drive(constant, features, layout_for(grid, 12))
    assert shallow == deep[:12]
    own, _ = drive(
        FrameFusion(tau_sim=0.95).start(layout_for(grid, 12), budget), features, layout_for(grid, 12)
    )
    assert own != shallow


@pytest.mark.parametrize(
    ("parameter", "allowed", "refused"),
    [
        ("tau_sim", [-1, 0, 0.6, 1], [-1.01, 1.01, True, "0.6", float("nan")]),
        ("ratio_lower_bound", [0, 0.1, 1], [-0.01, 1.01, True, "0.1", float("nan")]),
        ("queries", [1, 4], [0, True, 1.0]),
        ("released_layers", ["auto", 2, 28], [1, True, 28.0, "28"]),
    ],
)
def test_framefusion_takes_what_its_parameters_allow(parameter, allowed, refused):
    for value in allowed:
        assert getattr(FrameFusion(**{parameter: value}), parameter) == value
    for value in refused:
        with pytest.raises(ConfigError, match=f"compressor.{parameter}=.* is out of range"):
            FrameFusion(**{parameter: value})


def test_framefusion_needs_a_layer_to_merge_and_one_to_prune():
    budget = Budget("tokens", 0.3)
    with pytest.raises(ConfigError, match="at least 2 layers"):
        FrameFusion().check(budget, 1)
    FrameFusion().check(budget, 2)
    FrameFusion().check(budget, None)


@pytest.mark.parametrize(("released", "last"), [("auto", 10), (28, 10), (12, 10), (4, 2)])
def test_framefusion_acts_in_all_layers_but_the_last_of_model_and_constant(released, last):
    """A drop in the last layer is seen by no layer."""
    places = FrameFusion(released_layers=released).start(layout_for(Grid(2, 2, 2), 12), Budget()).places
    assert places.input and not places.before
    assert places.between == places.attention == set(range(last + 1))


def test_framefusion_merges_up_to_the_layer_before_the_one_that_prunes():
    """Of four layers the first two merge, the third prunes, and the last is left alone."""
    grid, layout = Grid(8, 1, 1), layout_for(Grid(8, 1, 1), layers=4)
    run = FrameFusion(tau_sim=0.9).start(layout, Budget("tokens", 0.25))

    def present(pairs: int, count: int) -> VideoTokens:
        """Tokens of which the last ``pairs`` are like the one before, and the others like none."""
        features = torch.eye(8)[:count]
        for i in range(count - pairs, count):
            features[i] = features[i - 1]
        return VideoTokens(features, grid, torch.arange(count))

    assert run.at_input(present(1, 8)).keep.tolist() == list(range(7))
    assert run.between(0, present(1, 7), None).keep.tolist() == list(range(6))
    assert run.between(1, present(1, 6), None).keep.tolist() == list(range(5))
    with pytest.raises(ValueError, match="needs the attention of layer 2"):
        run.between(2, present(1, 5), None)
    assert run.finished


def test_methods_of_the_vision_place_ask_for_its_signals():
    asking = {name for name in METHODS if compressors.resolve(name).needs_vision}
    assert asking == {"fastervlm", "visionzip", "prumerge", "fastvid", "flashvid", "holitom"}


def test_fastv_needs_attention():
    grid = Grid(2, 2, 2)
    run = FastV(layer=2).start(layout_for(grid), Budget("tokens", 0.5))
    with pytest.raises(ValueError, match="FastV needs the attention of layer 1"):
        run.before_layer(2, VideoTokens.full(video("different", grid), grid), None)


def test_defaults_are_what_was_published():
    assert vars(STSimDiff()) == {
        **{"rule": "released", "tau_sim": 0.8, "tau_diff": 0.2, "edges": "both", "similarity": True},
        **{"difference": True, "pruning": True, "community": "connected", "split_above": "off", "layer": 1},
        **{"reduction": "mean", "released_layers": "auto"},
    }
    assert vars(FastV()) == {"layer": 2, "queries": "last"}
    assert vars(FrameFusion()) == {
        **{"tau_sim": 0.6, "ratio_lower_bound": 0.1, "queries": 1, "released_layers": "auto"}
    }
    assert vars(VisionZip()) == {"dominant": 54, "contextual": 10} and vars(PruMerge()) == {"plus": False}
    assert vars(compressors.resolve("random")()) == {"seed": 0}
