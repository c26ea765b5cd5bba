"""Questions as rows of token ids, with every place in a row at which training supervises something.

Besides the answer these are the steps of the way to it: see `supervision`.
"""

import random
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerFast

from stsimdiff.data.clips.questions import ClipQuestion, all_stems, copy_question, prompt
from stsimdiff.data.clips.vocabulary import ANSWER_WORDS, FLASH_SHAPES, STATIC_SHAPES
from stsimdiff.data.clips.world import Plan
from stsimdiff.data.parsing import LETTERS

from .architecture import open_prompt

TURN = "<|im_end|>\n<|im_start|>assistant\n"
KINDS = ("letter", "word", "copy", "caption")
OPTIONS = 4
COLOR_CATEGORIES = ("attr", "flash", "change")


@dataclass
class Row:
    """One question. Indices count tokens of the row; words are indices into `ANSWER_WORDS`.

    final: the position that predicts the answer, whose token is `target`; the end of turn follows.
    word: the answer's word; mark: position of the stem's "?".
    choice: position of the right option's word, -1 if there are no options.
    options: (position of an option's word, number of its letter).
    colors: (position of a shape's word, its color); fades: (position, color before, color after).
    """

    category: str
    kind: str
    tokens: list[int]
    final: int
    target: int
    word: int
    mark: int
    choice: int = -1
    options: list[tuple[int, int]] = field(default_factory=list)
    colors: list[tuple[int, int]] = field(default_factory=list)
    fades: list[tuple[int, int, int]] = field(default_factory=list)


class RowBuilder:
    """Makes rows of tokens of questions, exactly as the product sends them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.cache: dict[str, list[int]] = {}
        self.end_of_turn = tokenizer.eos_token_id
        self.word_ids = torch.tensor([self._word(word) for word in ANSWER_WORDS])
        self.letter_ids = torch.tensor([self._encode(letter)[0] for letter in LETTERS[:OPTIONS]])
        self.question_mark = self._encode("?")[0]
        self.shape_ids = {self._word(shape): shape for shape in (*STATIC_SHAPES, *FLASH_SHAPES)}
        longest = (prompt(stem, ANSWER_WORDS[:4]) + TURN for stem in all_stems())
        self.length = 1 + max(len(self._encode(text)) for text in longest)  # with the answer's token

    def _encode(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.cache[text]

    def _word(self, word: str) -> int:
        (token,) = self._encode(f" {word}")
        return token

    def question(self, question: ClipQuestion, plan: Plan | None, open_: bool = False) -> Row:
        """The benchmark's prompt and its letter, or with `open_` a prompt without options and the word."""
        stem = self._encode(question.stem)
        mark = stem.index(self.question_mark)
        if open_:
            tokens = self._encode(open_prompt(question.stem)) + self._encode(TURN)
        else:
            # Options are encoded line by line, which the cache makes fast; the tokens are those of the whole.
            tokens = self._encode_lines(prompt(question.stem, question.options)) + self._encode(TURN)
        word = ANSWER_WORDS.index(question.answer)
        target = int(self.word_ids[word]) if open_ else int(self.letter_ids[LETTERS.index(question.letter)])
        kind = "copy" if question.category == "copy" else "word" if open_ else "letter"
        row = Row(question.category, kind, [*tokens, target], len(tokens) - 1, target, word, mark)
        if not open_:
            row.options = [(mark + 1 + 4 * i + 3, i) for i in range(OPTIONS)]
            row.choice = row.options[question.options.index(question.answer)][0]
        shape = next((i for i, token in enumerate(stem) if token in self.shape_ids), None)
        if question.category in ("attr", "flash"):
            row.colors = [(shape, word)]
        elif question.category == "change":
            _, before, after = plan.changing
            row.fades = [(shape, ANSWER_WORDS.index(before), ANSWER_WORDS.index(after))]
        return row

    def _encode_lines(self, text: str) -> list[int]:
        lines = text.split("\n")
        newline = self._encode("\n")
        tokens = list(self._encode(lines[0]))
        for line in lines[1:]:
            tokens += [*newline, *self._encode(line)]
        return tokens

    def caption(self, plan: Plan, category: str, rng: random.Random) -> Row:
        """ "circle red star blue ...": the color of every shape of the clip, each supervised at its shape."""
        shown = sorted({*plan.static, *plan.flashes})
        rng.shuffle(shown)
        tokens, colors = [], []
        for shape, color in shown:
            colors.append((len(tokens), ANSWER_WORDS.index(color)))
            tokens += [self._word(shape), self._word(color)]
        final = len(tokens) - 2
        return Row(category, "caption", tokens, final, tokens[-1], colors[-1][1], final, colors=colors)

    def copy(self, rng: random.Random) -> Row:
        """A row that asks for a word of its own question, which needs no video."""
        return self.question(copy_question(rng), None)

    def check(self) -> None:
        """Rows must be exactly the tokens that the product sends, with options where `Row` says."""
        rng = random.Random(0)
        for stem in all_stems():
            options = tuple(rng.sample(ANSWER_WORDS, 4))
            question = ClipQuestion("mark", stem, options, options[1])
            row = self.question(question, None)
            whole = prompt(stem, options) + TURN
            assert row.tokens[:-1] == self.tokenizer.encode(whole, add_special_tokens=False), stem
            assert [row.tokens[at] for at, _ in row.options] == [self._word(word) for word in options], stem
