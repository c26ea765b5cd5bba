"""Stage 1: the vision tower learns to turn pixels into the code of each visual token.

Each token is classified by its similarity to the codebook's rows, so that the output is the sum of the rows
and not merely something from which the classes can be read.
"""

import random
from pathlib import Path

import torch
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stsimdiff.data.clips.labels import BRIEF, SHAPE_CLASSES, token_labels
from stsimdiff.data.clips.rendering import render
from stsimdiff.data.clips.vocabulary import FLASH_SHAPES
from stsimdiff.data.clips.world import GRIDS, World, sample_world

from .architecture import build_model, build_tokenizer
from .journal import Journal
from .optimizer import Optimizer, rate_share
from .recipe import TowerRecipe
from .symbols import CODED, build_codebook, label_tensors, patchify

FIRST_SEED = 0  # of the training videos of this stage
VALIDATION_SEED = 5_000_000


def _grids(world: World, rng: random.Random) -> list[int]:
    """Two grids worth learning from: one with a flash or the ball, one of any kind."""
    brief = [
        grid for thing in world.things if thing.kind in ("flash", "ball") for grid in _visible(world, thing)
    ]
    ball = [grid for thing in world.things if thing.kind == "ball" for grid in _visible(world, thing)]
    draw = rng.random()
    second = rng.choice(ball) if draw < 0.45 else rng.choice(brief) if draw < 0.7 else rng.randrange(GRIDS)
    return [rng.choice(brief), second]


def _visible(world: World, thing) -> list[int]:
    return [g for g in range(GRIDS) if thing.visible(2 * g) and not world.in_insert(2 * g)]


def plain_attention(module, query, key, value, attention_mask=None, scaling=None, **kwargs):
    """Attention of one grid by plain matrices, whose gradient on a CPU is faster than the fused kernel's."""
    with torch.autocast("cpu", enabled=False):
        query, key = query.to(value.dtype) * scaling, key.to(value.dtype)
        weights = (query @ key.transpose(-1, -2)).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), None


class TowerTrainer:
    """Trains the vision tower to give each token the code of what it shows."""

    def __init__(self, recipe: TowerRecipe, seed: int):
        self.recipe = recipe
        tokenizer = build_tokenizer()
        self.tower = build_model(tokenizer, seed).model.visual
        ALL_ATTENTION_FUNCTIONS.register("plain_grid", plain_attention)
        self.tower.config._attn_implementation = "plain_grid"
        self.parts = build_codebook(tokenizer).parts
        self.scale = torch.nn.Parameter(torch.tensor(4.0))
        self.biases = {name: torch.nn.Parameter(torch.zeros(len(self.parts[name]))) for name in CODED}
        named = list(self.tower.named_parameters())
        matrices = [parameter for _, parameter in named if parameter.ndim == 2]
        others = [parameter for _, parameter in named if parameter.ndim != 2]
        self.optimizer = Optimizer(matrices, [*others, self.scale, *self.biases.values()])
        self.rng = random.Random(seed)
        self.next_world = FIRST_SEED + 1_000_000 * seed

    def batch(self, worlds: list[World]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Patches [worlds * 2 * 256, 294] and labels [worlds * 2 * 64] of two grids of each world."""
        patches, labels = [], []
        for world in worlds:
            grids = _grids(world, self.rng)
            patches.append(patchify(render(world, [2 * grid + half for grid in grids for half in (0, 1)])))
            labels.append(label_tensors(token_labels(world, grids)))
        return torch.cat(patches), {name: torch.cat([label[name] for label in labels]) for name in labels[0]}

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Visual tokens [tokens, 128] and class scores [tokens, classes] of each label."""
        grid = torch.tensor([[1, 16, 16]]).expand(len(patches) // 256, -1)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = self.tower(patches, grid_thw=grid).pooler_output
        tokens = tokens.float()
        scores = {name: tokens @ rows.T * self.scale + self.biases[name] for name, rows in self.parts.items()}
        return tokens, scores

    def loss(self, patches: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Classes of each token, and the distance to its code."""
        tokens, scores = self.forward(patches)
        evidence = labels["evidence"] > 0
        weight = torch.where(evidence, 1.0, torch.where(labels["shape"] > 0, 0.12, 0.2))
        total = torch.zeros(())
        for name in CODED:
            wrong = functional.cross_entropy(scores[name], labels[name], reduction="none")
            total = total + (wrong * weight).sum() / weight.sum()
        code = sum(self.parts[name][labels[name]] for name in CODED)
        # Background only has to be about right; its exact code must not cost evidence its accuracy.
        exact = torch.where(evidence, 1.0, 0.03)
        distance = (tokens - code).pow(2).sum(1)
        return total + 2 * (distance * exact).sum() / exact.sum()

    @torch.no_grad()
    def validate(self, patches: torch.Tensor, labels: dict[str, torch.Tensor]) -> dict[str, float]:
        """Accuracy of each kind of label."""
        _, scores = self.forward(patches)
        evidence, shape = labels["evidence"], labels["shape"]
        flashes = torch.isin(shape, torch.tensor([SHAPE_CLASSES.index(name) for name in FLASH_SHAPES]))
        subsets = {
            "shape": ("shape", evidence > 0),
            "flash": ("shape", flashes & (evidence == BRIEF)),
            "color": ("color", (evidence > 0) & (labels["color"] > 0)),
            "direction": ("direction", labels["direction"] > 0),
            "mark": ("shape", shape == SHAPE_CLASSES.index("mark")),
            "place": ("place", labels["place"] > 0),
            "background": ("shape", evidence == 0),
        }
        right = {name: scores[name].argmax(1) == labels[name] for name in CODED}
        return {name: right[label][subset].float().mean().item() for name, (label, subset) in subsets.items()}

    def train(self, journal: Journal, path: Path) -> None:
        """All steps; saves the tower."""
        recipe = self.recipe
        seeds = range(VALIDATION_SEED, VALIDATION_SEED + recipe.validation_videos)
        validation = self.batch([sample_world(seed) for seed in seeds])
        for step in range(recipe.steps):
            worlds = [sample_world(self.next_world + i) for i in range(recipe.videos)]
            self.next_world += recipe.videos
            loss = self.loss(*self.batch(worlds))
            loss.backward()
            self.optimizer.step(rate_share(step, recipe.steps, 30, recipe.decay_from, 0.02))
            if (step + 1) % recipe.report_every == 0 or step + 1 == recipe.steps:
                journal.write(step + 1, loss=loss.item(), accuracy=self.validate(*validation))
        torch.save(self.tower.state_dict(), path)


def run_tower(recipe: TowerRecipe, seed: int, work: Path, journal: Journal) -> None:
    """The stage, on one core."""
    torch.set_num_threads(1)
    TowerTrainer(recipe, seed).train(journal, work / "tower.pt")
