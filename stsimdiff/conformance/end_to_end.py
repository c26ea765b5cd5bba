"""Replays of whole recorded runs: a small checkpoint in its original format, a video, a prompt, five new tokens.

The product's own family loads the checkpoint, its engine applies its compressor, and this module watches.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stsimdiff.budget import Budget
from stsimdiff.compressors.base import Compressor, Run
from stsimdiff.compressors.fastv import FastV
from stsimdiff.compressors.framefusion import FrameFusion
from stsimdiff.compressors.st_simdiff import STSimDiff
from stsimdiff.conformance.cases import INPUT, Arrays, Fields, read_fields
from stsimdiff.conformance.prompts import given_prompt, load_family
from stsimdiff.conformance.selection import Sequence, released_method
from stsimdiff.conformance.watching import WatchedCompression, WatchedRun
from stsimdiff.errors import ConfigError
from stsimdiff.models.base import Family, Prompt
from stsimdiff.models.checkpoint import read_config
from stsimdiff.models.qwen2_vl import Qwen2VL
from stsimdiff.tokens import Layout

RELEASED_LAYERS = 28
"""Depth that the released ST-SimDiff and FrameFusion spread their budget over, whatever the model's own."""
NEW_TOKENS = 5
NUMBER = r"(\d+(?:\.\d+)?)"
RUNS = {
    "none": (re.compile("baseline"), ()),
    "ST-SimDiff": (
        re.compile(f"simdiff_c{NUMBER}_s{NUMBER}(?:_stablesort)?"),
        ("cost", "similarity_lower_bound"),
    ),
    "FrameFusion": (
        re.compile(f"framefusion_c{NUMBER}_s{NUMBER}_r{NUMBER}"),
        ("cost", "similarity_lower_bound", "ratio_lower_bound"),
    ),
    "FastV": (re.compile(f"fastv_k{NUMBER}_r{NUMBER}"), ("fastv_k", "fastv_r")),
}
"""Method of a run by its name, and the settings that the name holds."""


def settings_of(folder: Path, run: str) -> dict[str, Any]:
    """Method and settings of a run: those of ``meta.json`` where it lists the run, else those of its name.

    Raises:
        ConfigError: for a name that says no method this product has.
    """
    for method, (pattern, names) in RUNS.items():
        if match := pattern.fullmatch(run):
            settings: dict[str, Any] = dict(zip(names, map(float, match.groups()), strict=True))
            settings.update(_noted(folder, run))
            return {**settings, "method": method}
    raise ConfigError(
        f"the run {run!r} in {folder} is none that can be replayed; allowed: baseline, simdiff_c<cost>_s<similarity>, "
        "framefusion_c<cost>_s<similarity>_r<ratio>, fastv_k<layer>_r<share removed>"
    )


def _noted(folder: Path, run: str) -> dict[str, Any]:
    file = folder / "meta.json"
    cases = read_config(file).get("cases", []) if file.is_file() else []
    return next((dict(case) for case in cases if case.get("file") == f"{run}.npz"), {})


def compressor_of(
    settings: dict[str, Any], tokens: int, queries: int = 1
) -> tuple[Compressor | None, Budget]:
    """The product's method and budget for a recorded run; ``None``: keep all.

    Args:
        settings: of :func:`settings_of`.
        tokens: video tokens N.
        queries: prompt tokens that FrameFusion asks.

    Raises:
        ConfigError: for a setting that the product does not have.
    """
    if settings["method"] == "none":
        return None, Budget()
    if settings["method"] == "FastV":
        count = round(tokens * (1 - settings["fastv_r"]))
        return FastV(layer=int(settings["fastv_k"])), Budget("tokens", count / tokens)
    budget = Budget("compute", settings["cost"])
    if settings["method"] == "FrameFusion":
        return FrameFusion(settings["similarity_lower_bound"], settings["ratio_lower_bound"], queries), budget
    if settings.get("merge_type", "new_topk") != "new_topk":
        raise ConfigError(
            f"the run was recorded with merge_type={settings['merge_type']}; only new_topk is implemented"
        )
    return released_method(settings, RELEASED_LAYERS), budget


def replay_run(folder: Path, run: str, family: Family | None = None) -> Arrays:
    """Our outputs for one run, under the names of the recording.

    Args:
        folder: the folder of the case.
        run: the name of the run.
        family: the loaded checkpoint of the folder, loaded here when not given.
    """
    settings = settings_of(folder, run)
    recorded = read_fields(folder / f"{run}.npz") if (folder / f"{run}.npz").is_file() else Fields(folder, {})
    family = family or load_family(folder / "checkpoint")
    prompt, out = given_prompt(family, read_fields(folder / INPUT), folder, recorded)
    layout = prompt.layout
    place = Sequence(int(layout.video[0]), layout.length, layout.grid)
    # FrameFusion's released adaptation to Qwen2-VL asks four tokens, those to other models one.
    queries = 4 if isinstance(family, Qwen2VL) else 1
    compressor, budget = compressor_of(settings, layout.grid.tokens, queries)
    inner = start(compressor, layout, budget)
    first = None
    if isinstance(compressor, STSimDiff) and "merge_keep_index" in recorded:
        first = place.video(recorded["merge_keep_index"])
    watched = WatchedRun(inner, len(family.decoder), first)
    watching = WatchedCompression(family.decoder, watched, layout)
    with watching:
        out.update(generate(family, prompt))
    out.update(watching.arrays(place))
    if compressor is not None:
        out["image_token_start"] = np.int64(place.start)
        out["image_token_length"] = np.int64(layout.grid.tokens)
        out["patch_num"] = np.int64(layout.grid.per_frame)
        out.update(watched.arrays(place, watching, compressor))
    return out


def start(compressor: Compressor | None, layout: Layout, budget: Budget) -> Run:
    """The run; FrameFusion's believes in the released depth, as ST-SimDiff's does by its own parameter."""
    if compressor is None:
        return Run()
    if isinstance(compressor, FrameFusion):
        layout = Layout(layout.grid, layout.video, layout.length, RELEASED_LAYERS, layout.sample)
    return compressor.start(layout, budget)


@torch.inference_mode()
def generate(family: Family, prompt: Prompt) -> Arrays:
    """Five greedy tokens, an end-of-text token among them being a token like any other."""
    ends = family.model.generation_config.eos_token_id
    family.model.generation_config.eos_token_id = None
    try:
        output = family.model.generate(
            **prompt.inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    finally:
        family.model.generation_config.eos_token_id = ends
    logits = torch.cat(output.logits).float().cpu().numpy()
    return {
        "gen_tokens": output.sequences[0, -NEW_TOKENS:].cpu().numpy(),
        "gen_logits": logits,
        "logits_last": logits[0],
    }
