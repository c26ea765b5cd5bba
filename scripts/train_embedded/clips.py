"""Training clips of the language model: symbolic ones made on the fly, and cached features of real frames."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stsimdiff.data.clips.labels import BRIEF, MARK, NO_EVIDENCE, STATIC, token_labels
from stsimdiff.data.clips.rendering import render
from stsimdiff.data.clips.world import Plan, sample_world

from .architecture import VIDEO_TOKENS, WIDTH, build_model, build_tokenizer
from .recipe import Recipe
from .symbols import CODED, Codebook, label_tensors, patchify

SYMBOLIC_SEED = 2_000_000
POOL_SEED = 3_000_000
VALIDATION_SEED = 9_000_000

# How likely a token survives the random drops of training. Flashes and the ball always do: a model that is
# asked for what it cannot see only learns to guess. Static evidence is seen in many grids.
SURVIVAL = {NO_EVIDENCE: 1.0, STATIC: 6.0, BRIEF: 1e6, MARK: 30.0}
INSERT_SURVIVAL = 2.0  # background of the insert shot, one grid of eight


@dataclass
class Clip:
    """A plan with its token labels, int8 [512] each, and its features, bfloat16 [512, 128] or None."""

    plan: Plan
    labels: dict[str, torch.Tensor]
    features: torch.Tensor | None = None

    def keep(self, count: int, blind: bool = False) -> torch.Tensor:
        """Indices [count] of tokens that survive a random drop, in order; a blind drop spares no evidence."""
        if count >= VIDEO_TOKENS:
            return torch.arange(VIDEO_TOKENS)
        if blind:
            return torch.randperm(VIDEO_TOKENS)[:count].sort().values
        table = torch.tensor([SURVIVAL[kind] for kind in range(4)])
        weight = table[self.labels["evidence"].long()]
        weight = torch.where((weight == 1) & (self.labels["insert"] > 0), INSERT_SURVIVAL, weight)
        # Sampling without replacement by exponential keys (Efraimidis and Spirakis, 2006).
        return (torch.rand(VIDEO_TOKENS).log() / weight).topk(count).indices.sort().values

    def tokens(self, kept: torch.Tensor, codebook: Codebook, noise: float) -> torch.Tensor:
        """Visual tokens [kept, 128], float: cached features, or the code with Gaussian noise."""
        if self.features is not None:
            return self.features[kept].float()
        code = codebook.code({name: self.labels[name][kept].long() for name in CODED})
        return code + noise * torch.randn(len(kept), WIDTH)


def symbolic_clip(seed: int) -> Clip:
    """The clip of a seed as token labels, without pixels."""
    world = sample_world(seed)
    labels = label_tensors(token_labels(world))
    return Clip(world.plan, {name: values.to(torch.int8) for name, values in labels.items()})


class SymbolicPool:
    """A window over an endless stream of symbolic clips: `fresh` new ones replace the oldest each step."""

    def __init__(self, seed: int, skip: int = 0, size: int = 1500, fresh: int = 8):
        """`skip` is the number of steps that an interrupted run has already made."""
        self.clips: list[Clip] = []
        self.next_seed = SYMBOLIC_SEED + 100_000 * seed + fresh * skip
        self.size, self.fresh = size, fresh

    def sample(self, count: int, rng: random.Random) -> list[Clip]:
        """Draw clips, after new ones have come in."""
        for _ in range(self.fresh if len(self.clips) >= 64 else 64):
            self.clips.append(symbolic_clip(self.next_seed))
            self.next_seed += 1
        del self.clips[: -self.size]
        return rng.sample(self.clips, count)


class FeaturePool:
    """All cached clips."""

    def __init__(self, clips: list[Clip]):
        self.clips = clips

    def sample(self, count: int, rng: random.Random) -> list[Clip]:
        """Draw clips."""
        return rng.sample(self.clips, count)


@torch.inference_mode()
def _cache(tower: torch.nn.Module, seeds: Sequence[int], path: Path) -> None:
    """Features of real frames, and labels, of the videos of one shard."""
    rows = []
    for start in range(0, len(seeds), 4):
        worlds = [sample_world(seed) for seed in seeds[start : start + 4]]
        patches = torch.cat([patchify(render(world)) for world in worlds])
        grid = torch.tensor([[8, 16, 16]]).expand(len(worlds), -1)
        with torch.autocast("cpu", torch.bfloat16):
            features = tower(patches, grid_thw=grid).pooler_output
        features = features.to(torch.bfloat16).view(len(worlds), VIDEO_TOKENS, WIDTH)
        for world, own in zip(worlds, features, strict=True):
            labels = label_tensors(token_labels(world))
            rows.append((world.plan, {name: v.to(torch.int8) for name, v in labels.items()}, own.clone()))
    torch.save(rows, path)


def run_features(recipe: Recipe, seed: int, work: Path) -> None:
    """Cache features with the tower of stage 1, shard by shard.

    Any number of processes may run this at once: each takes the shards that no other has claimed.
    """
    torch.set_num_threads(1)
    tower = build_model(build_tokenizer(), seed).model.visual.eval()
    tower.load_state_dict(torch.load(work / "tower.pt"))
    first, count, shards = POOL_SEED + 100_000 * seed, recipe.pool_videos, recipe.pool_shards
    jobs = {"validation": range(VALIDATION_SEED, VALIDATION_SEED + recipe.video.validation_videos)}
    for i in range(shards):
        jobs[f"pool{i:02d}"] = range(first + count * i // shards, first + count * (i + 1) // shards)
    for name, seeds in jobs.items():
        try:
            (work / f"{name}.claim").touch(exist_ok=False)
        except FileExistsError:
            continue
        _cache(tower, seeds, work / f"{name}.pt")
        print(f"features: cached {len(seeds)} videos as {name}", flush=True)


def load_features(path: Path) -> list[Clip]:
    """The clips that one process cached."""
    return [Clip(*row) for row in torch.load(path, weights_only=False)]
