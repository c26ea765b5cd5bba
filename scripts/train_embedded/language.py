"""Stages 2 and 3: the language model, first on symbolic videos, then on cached features of real frames.

Both are the same loop; the second starts from the first's weights, probes and optimizer state, and runs as
two processes of one thread that average their gradients, which two cores do faster than two threads.
"""

import random
import shutil
from collections import defaultdict
from pathlib import Path

import torch
from torch import distributed
from torch.nn import functional

from stsimdiff.data.clips.questions import CATEGORIES, ask

from . import clips as training_clips
from .architecture import VIDEO_TOKENS, WIDTH, build_model, build_tokenizer, save
from .batches import Batch, Batcher
from .clips import Clip, FeaturePool, SymbolicPool
from .journal import Journal
from .optimizer import Optimizer, rate_share
from .packing import Packing, Prefix, use_packed_attention
from .recipe import LanguageRecipe
from .rows import RowBuilder
from .supervision import WEIGHTS, WORD, Probes, Supervision
from .symbols import build_codebook

EMA = 0.05  # of the running accuracies and losses


class LanguageTrainer:
    """Trains the language model on token codes, then on features of the frozen tower."""

    def __init__(self, recipe: LanguageRecipe, seed: int, rank: int = 0, ranks: int = 1):
        self.recipe, self.seed, self.rank, self.ranks = recipe, seed, rank, ranks
        self.tokenizer = build_tokenizer()
        self.model = build_model(self.tokenizer, seed)
        self.model.model.visual.requires_grad_(False)
        codebook = build_codebook(self.tokenizer)
        with torch.no_grad():
            self.model.get_input_embeddings().weight.copy_(codebook.embeddings)
        self.language = self.model.model.language_model
        use_packed_attention(self.language)
        self.rows = RowBuilder(self.tokenizer)
        self.rows.check()
        self.prefix = Prefix(self.model, self.tokenizer)
        self.batcher = Batcher(self.rows, self.prefix, codebook)
        self.probes = Probes()
        self.supervision = Supervision(self.language, self.rows, self.probes)
        matrices = [p for p in self.language.layers.parameters() if p.ndim == 2]
        others = [p for p in self.language.layers.parameters() if p.ndim != 2]
        others += [self.language.embed_tokens.weight, self.language.norm.weight, *self.probes.parameters()]
        self.optimizer = Optimizer(matrices, others)
        self.rng = random.Random(ranks * seed + rank)
        torch.manual_seed(ranks * seed + rank)
        # Running means that choose what to ask next: hard categories more often.
        self.category_loss = dict.fromkeys(CATEGORIES, 0.7)
        self.copy_accuracy = 0.25
        self.next_step = 0

    def forward(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Scores [rows, vocabulary] at every row's final position, and the losses of supervision."""
        embed = self.language.embed_tokens
        clips, length = len(batch.video), self.rows.length
        before, after = (embed(ids).expand(clips, -1, -1) for ids in (self.prefix.before, self.prefix.after))
        embeddings = torch.cat([before, batch.video, after, embed(batch.ids)], 1)
        count, prefix = batch.ids.shape[1] // length, before.shape[1] + batch.video.shape[1] + after.shape[1]
        packing = Packing(prefix, count, length)
        hidden = self.language(
            inputs_embeds=embeddings,
            position_ids=self.prefix.packed_positions(batch.kept, count, length),
            attention_mask={"full_attention": None},
            use_cache=False,
            packing=packing,
        ).last_hidden_state
        _, hidden = hidden.split([prefix, batch.ids.shape[1]], 1)
        hidden = hidden.reshape(batch.rows, length, WIDTH)
        every = torch.arange(batch.rows)
        answered = torch.tensor([kind != "caption" for kind in batch.kinds])
        final, end = hidden[every.repeat(2), torch.cat([batch.final, batch.final + 1])].split(batch.rows)
        scores, ends = self.model.lm_head(final).float(), self.model.lm_head(end[answered]).float()
        losses = self.supervision.losses(batch, before.shape[1], packing.own_weights[-1])
        losses["end"] = functional.cross_entropy(ends, torch.full((len(ends),), self.rows.end_of_turn))
        return scores, losses

    def step(self, pool: SymbolicPool | FeaturePool, step: int) -> dict[str, float]:
        """One step on clips of the pool; its losses by name."""
        recipe, rng = self.recipe, self.rng
        _, sizes = [size for size in recipe.sizes if step >= size[0] * recipe.steps][-1]
        tokens, videos = random.Random(self.seed * 1_000_000 + step).choice(sizes)  # the same for all ranks
        copy_share = max(recipe.copy_share, 0.6 * (1 - self.copy_accuracy))
        if step % recipe.no_video_every == recipe.no_video_every - 1:
            tokens, copy_share = 0, 1.0  # without a video only what needs none can be asked
        weights = [min(max(self.category_loss[category], 0.2), 1.5) for category in CATEGORIES]

        def rows_of(clip: Clip):
            categories = rng.choices(CATEGORIES, weights, k=recipe.questions)
            return self.batcher.training_rows(clip, categories, recipe, copy_share, rng)

        batch = self.batcher.batch(pool.sample(videos, rng), tokens, rows_of)
        with torch.autocast("cpu", torch.bfloat16):
            scores, losses = self.forward(batch)
        answers = functional.cross_entropy(scores, batch.target, reduction="none")
        if step < recipe.choice_from:
            losses.pop("choice", None)
        loss = answers.mean() + sum(WEIGHTS[name] * value for name, value in losses.items())
        loss.backward()
        self._average_gradients()
        self.optimizer.step(rate_share(step, recipe.steps, recipe.warmup, recipe.decay_from, recipe.decay_to))
        self._follow(batch, answers.detach(), scores.argmax(1) == batch.target)
        return {"answer": answers.mean().item(), **{name: value.item() for name, value in losses.items()}}

    def _average_gradients(self) -> None:
        if self.ranks == 1:
            return
        parameters = self.optimizer.parameters
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        distributed.all_reduce(flat)
        for parameter, mean in zip(
            parameters, (flat / self.ranks).split([p.numel() for p in parameters]), strict=True
        ):
            parameter.grad = mean.view_as(parameter)

    def _follow(self, batch: Batch, losses: torch.Tensor, right: torch.Tensor) -> None:
        """Update the running means with one batch."""
        by_category, copies = defaultdict(list), []
        for i, (category, kind) in enumerate(zip(batch.categories, batch.kinds, strict=True)):
            if kind == "copy":
                copies.append(float(right[i]))
            elif kind != "caption":
                by_category[category].append(float(losses[i]))
        for category, values in by_category.items():
            self.category_loss[category] += EMA * (sum(values) / len(values) - self.category_loss[category])
        if copies:
            self.copy_accuracy += EMA * (sum(copies) / len(copies) - self.copy_accuracy)

    @torch.no_grad()
    def validate(
        self, clips: list[Clip], tokens: int = VIDEO_TOKENS, blind: bool = False
    ) -> list[dict[str, float]]:
        """Accuracy by category of letters and of the word at the stem's end: the step before the letter."""
        rng = random.Random(7 + self.rank)
        right, asked = torch.zeros(2, len(CATEGORIES)), torch.zeros(len(CATEGORIES))
        clips = clips[self.rank :: self.ranks]
        for start in range(0, len(clips), 8):

            def rows_of(clip: Clip):
                return [
                    self.rows.question(ask(clip.plan, category, rng), clip.plan) for category in CATEGORIES
                ]

            batch = self.batcher.batch(clips[start : start + 8], tokens, rows_of, blind)
            with torch.autocast("cpu", torch.bfloat16):
                scores, _ = self.forward(batch)
                state = self.supervision.states[WORD][:, -batch.ids.shape[1] :].reshape(batch.rows, -1, WIDTH)
                words = self.supervision.read(state[torch.arange(batch.rows), batch.mark], self.rows.word_ids)
            letters = self.rows.letter_ids[scores[:, self.rows.letter_ids].argmax(1)]
            category = torch.tensor([CATEGORIES.index(name) for name in batch.categories])
            right[0].index_add_(0, category, (letters == batch.target).float())
            right[1].index_add_(0, category, (words.argmax(1) == batch.word).float())
            asked.index_add_(0, category, torch.ones(len(category)))
        if self.ranks > 1:
            distributed.all_reduce(right)
            distributed.all_reduce(asked)
        return [dict(zip(CATEGORIES, (row / asked).tolist(), strict=True)) for row in right]

    def train(
        self, pool: SymbolicPool | FeaturePool, validation: list[Clip], journal: Journal, path: Path
    ) -> None:
        """All steps that are left; validates, writes the journal and saves on the way."""
        recipe, sums, count = self.recipe, defaultdict(float), defaultdict(int)
        for step in range(self.next_step, recipe.steps):
            self.next_step = step + 1
            for name, value in self.step(pool, step).items():
                sums[name] += value
                count[name] += 1
            last = step + 1 == recipe.steps
            if (step + 1) % 25 == 0 or last or (step + 1) % recipe.validate_every == 0:
                values = {"losses": {name: sums[name] / count[name] for name in sums}}
                values |= {"copy": self.copy_accuracy, "category_loss": dict(self.category_loss)}
                if (step + 1) % recipe.validate_every == 0 or last:
                    letters, words = self.validate(validation)
                    values |= {"accuracy": letters, "word_accuracy": words}
                    self.checkpoint(path)
                if self.rank == 0:
                    journal.write(step + 1, **values)
                sums.clear()
                count.clear()

    def checkpoint(self, path: Path) -> None:
        """Save all that a stage needs to go on; the first process does."""
        if self.rank:
            return
        state = {
            "language": self.language.state_dict(),
            "probes": self.probes.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.next_step,
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        shutil.move(temporary, path)

    def resume(self, path: Path) -> None:
        """Go on where a run of the same stage was interrupted, if it was."""
        if path.exists():
            self.load(path)
            self.next_step = torch.load(path)["step"]

    def load(self, path: Path) -> None:
        """Continue from `checkpoint`."""
        state = torch.load(path)
        self.language.load_state_dict(state["language"])
        self.probes.load_state_dict(state["probes"])
        self.optimizer.load_state_dict(state["optimizer"])


def run_symbolic(recipe: LanguageRecipe, seed: int, work: Path, journal: Journal) -> None:
    """The stage on symbolic clips, on one core."""
    torch.set_num_threads(1)
    first = training_clips.VALIDATION_SEED
    validation = [training_clips.symbolic_clip(first + i) for i in range(recipe.validation_videos)]
    trainer = LanguageTrainer(recipe, seed)
    trainer.resume(work / "symbolic.pt")
    pool = SymbolicPool(seed, skip=trainer.next_step)
    trainer.train(pool, validation, journal, work / "symbolic.pt")


def run_video(recipe: LanguageRecipe, seed: int, rank: int, ranks: int, work: Path, journal: Journal) -> None:
    """The stage on cached features, one process of several."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{work.resolve()}/ranks", rank=rank, world_size=ranks
    )
    trainer = LanguageTrainer(recipe, seed + 1, rank, ranks)
    trainer.load(work / "symbolic.pt")
    trainer.copy_accuracy = 0.9  # learned in stage 2
    trainer.resume(work / "video.pt")
    pool = [clip for path in sorted(work.glob("pool*.pt")) for clip in training_clips.load_features(path)]
    validation = training_clips.load_features(work / "validation.pt")
    trainer.train(FeaturePool(pool), validation, journal, work / "video.pt")
    distributed.destroy_process_group()


def token_drops(seed: int, work: Path, shares: tuple[float, ...]) -> dict[float, dict[str, float]]:
    """Accuracy by category on the validation videos when a share of all visual tokens is kept blindly."""
    trainer = LanguageTrainer(LanguageRecipe(steps=0, sizes=()), seed)
    trainer.load(work / "video.pt")
    clips = training_clips.load_features(work / "validation.pt")
    torch.manual_seed(seed)
    return {share: trainer.validate(clips, round(share * VIDEO_TOKENS), blind=True)[0] for share in shares}


def run_save(seed: int, work: Path, out: Path) -> None:
    """Put tower and language model together and write the folder that stock classes load."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    model.model.visual.load_state_dict(torch.load(work / "tower.pt"))
    model.model.language_model.load_state_dict(torch.load(work / "video.pt")["language"])
    save(model, tokenizer, out)
