"""Deep supervision: losses on the steps of the way to an answer, which exist in training only.

Hidden states inside the stack are read through the model's own final norm and tied embeddings, or through
throw-away linear probes. With the answer's loss alone the letters stay at chance for whole runs; each of
these turned a flat curve into a learned skill within 50 to 200 steps. Layers are counted from 1.
"""

import torch
from torch import nn
from torch.nn import functional

from stsimdiff.data.clips.vocabulary import COLOR_NAMES, NUMBERS, PLACES

from .architecture import WIDTH
from .batches import Batch
from .rows import RowBuilder

BIND, TRACK, WORD, LATE = 2, 3, 4, 5  # layers whose outputs are supervised

# Weights of the losses; the answer's own is 1.
WEIGHTS = {
    "letter_of_option": 0.25,
    "color_of_shape": 0.5,
    "fade": 0.5,
    "word": 0.5,
    "late_word": 0.25,
    "choice": 0.25,
    "position": 0.5,
    "main_place": 0.25,
    "insert": 0.5,
    "timing": 0.5,
    "nth": 0.25,
    "end": 0.1,
}


class Probes(nn.Module):
    """Linear read-outs of what visual tokens and shape words should know."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Linear(WIDTH, 3)
        self.main_place = nn.Linear(WIDTH, len(PLACES))
        self.insert = nn.Linear(WIDTH, 1)
        self.timing = nn.Linear(WIDTH, 2)
        self.nth = nn.Linear(WIDTH, len(NUMBERS))
        self.fade = nn.Linear(WIDTH, 2 * len(COLOR_NAMES))


class Supervision:
    """Collects hidden states of a forward pass and turns them into losses."""

    def __init__(self, language_model: nn.Module, rows: RowBuilder, probes: Probes):
        self.model, self.rows, self.probes = language_model, rows, probes
        self.states: dict[int, torch.Tensor] = {}
        for layer in (BIND, TRACK, WORD, LATE):
            language_model.layers[layer - 1].register_forward_hook(self._hook(layer))

    def _hook(self, layer: int):
        def keep(module, inputs, output):
            self.states[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    def read(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Scores [n, len(ids)] of vocabulary entries for hidden states [n, WIDTH] of any layer."""
        return (self.model.norm(hidden) @ self.model.embed_tokens.weight[ids].T).float()

    def losses(self, batch: Batch, first: int, own_weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """All losses but the answer's.

        `first` is where video tokens start, in tokens of the sequence; `own_weights` is the last layer's
        attention within rows, [batch, heads, rows a clip, length, length].
        """
        count, questions = batch.kept.shape[1], batch.ids.shape[1]
        row, video = {}, {}
        for layer, state in self.states.items():
            sizes = [first, count, state.shape[1] - first - count - questions, questions]
            _, video[layer], _, questions_state = state.split(sizes, 1)
            row[layer] = questions_state.reshape(batch.rows, -1, WIDTH)
        every = torch.arange(batch.rows)
        words, letters = self.rows.word_ids, self.rows.letter_ids
        losses = {
            "word": functional.cross_entropy(self.read(row[WORD][every, batch.mark], words), batch.word),
            "late_word": functional.cross_entropy(
                self.read(row[LATE][every, batch.final], words), batch.word
            ),
        }
        if (batch.choice >= 0).any():
            losses["choice"] = self._choice_loss(batch, own_weights)
        if batch.options.shape[1]:
            at_row, at, letter = batch.options
            losses["letter_of_option"] = functional.cross_entropy(
                self.read(row[BIND][at_row, at], letters), letter
            )
        if batch.colors.shape[1]:
            at_row, at, color = batch.colors
            losses["color_of_shape"] = functional.cross_entropy(
                self.read(row[BIND][at_row, at], words), color
            )
        if batch.fades.shape[1]:
            at_row, at, before, after = batch.fades
            scores = self.probes.fade(self.model.norm(row[TRACK][at_row, at])).float()
            losses["fade"] = functional.cross_entropy(scores[:, : len(COLOR_NAMES)], before)
            losses["fade"] = losses["fade"] + functional.cross_entropy(scores[:, len(COLOR_NAMES) :], after)
        if count:
            losses |= self._video_losses(batch, video)
        return losses

    def _choice_loss(self, batch: Batch, own_weights: torch.Tensor) -> torch.Tensor:
        """Two heads of the last layer should look from the answer's place at the right option.

        Its word matches the one that the place holds since the layer before, and it knows its letter since
        layer 2; what is missing is the look, which the answer's loss alone takes very long to find.
        """
        with_options = (batch.choice >= 0).nonzero()[:, 0]
        weights = own_weights[:, :2].transpose(1, 2).flatten(0, 1)  # [rows, heads, length, length]
        looks = weights[with_options, :, batch.final[with_options], batch.choice[with_options]]
        return -(looks.float() + 1e-4).log().mean()

    def _video_losses(self, batch: Batch, states: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What visual tokens should know: where they are, which shot they belong to, which flash they are."""
        probes, labels = self.probes, batch.labels
        early, tracked = self.model.norm(states[BIND]), self.model.norm(states[TRACK])
        losses = {"position": functional.mse_loss(probes.position(early).float(), batch.coordinates)}
        main = batch.main_place[:, None].expand_as(labels["insert"])
        losses["main_place"] = functional.cross_entropy(
            probes.main_place(early).float().flatten(0, 1), main.flatten()
        )
        inside = labels["insert"].float()
        losses["insert"] = functional.binary_cross_entropy_with_logits(
            probes.insert(tracked)[..., 0].float(), inside, weight=1 + 3 * inside
        )
        # On flashes: how early and how late; -1 elsewhere. Sharp attention to it finds first and last.
        time = batch.coordinates[..., 0]
        flash = (labels["nth"] > 0)[..., None]
        wanted = torch.where(flash, torch.stack([1 - time, 1 + time], -1), torch.tensor(-1.0))
        weight = 0.1 + 3 * flash
        squared = (probes.timing(tracked).float() - wanted) ** 2
        losses["timing"] = (squared * weight).mean() / weight.mean()
        nth = labels["nth"].flatten() - 1  # -1 is ignored
        if (nth >= 0).any():
            scores = probes.nth(tracked).float().flatten(0, 1)
            losses["nth"] = functional.cross_entropy(scores, nth, ignore_index=-1)
        return losses
