"""An option's letter from a model's answer. What is not plainly a letter is not parsed, and never guessed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LETTERS = "ABCDEFGHIJ"

MOST_LISTED = 20
MOST_NESTED = 3
NEAR = 500
"""Characters after a letter that are searched for others."""
TEXT_OF = 0xE000
"""Stands, with an option's place added, for each character of that option's text: what it says is no letter."""

_OPEN, _CLOSE = r"[\"'(\[{<【「『《]", r"[\"')\]}>】」』》]"
_LETTER = re.compile(
    rf"\s*(?P<open>{_OPEN}*)\s*(?P<letter>[A-Za-z])(?![A-Za-z0-9])(?P<close>(?:\s?[)\]}}>】」』》]|[\"'])*)"
)
_BRACKET = re.compile(r"[)\]}>】」』》]")
_CJK = r"[\u1100-\u11ff\u3000-\u9fff\uac00-\ud7af]"
_TERMINATOR = re.compile(
    r"\s*$|[^\S\n]*\n"  # the end of the text or of the line
    rf"|[^\S\n]?[.:,;!]+(?=\s|$|{_OPEN}|{_CLOSE}|[A-Za-z]{{2}}|a\s[a-z]|[^\x00-\x7f])"
    r"|[^\S\n]*[–—−]|[^\S\n]+-+(?![->])|-+(?=\s|$)"  # a dash; not the hyphen of "A-frame", nor an arrow
    r"|\s*\?\s*$|\s*=|\s+\"[^\"]+\"\W*$|\s+\([^()]+\)\W*$"
    rf"|\s*{_CJK}"
)
_REASON = re.compile(r"[\s,.:;]*(?:because|since|as(?!\s+well\b)|rather|instead|not)\b")
_WRONG = re.compile(
    r"\s*(?:is|are|was|can|could|does|do|seems|would)"
    r"(?:n't\b|not\b|\s[^.,;\n]*?(?:\b(?:not|wrong|incorrect|false|out)\b|n't\b))"
)
_CALLED_WRONG = re.compile(
    r"[\s.:,;)\ufffd–—-]*(?:(?:is|was)\s+)?(?:wrong|incorrect|false|(?:ruled|crossed)\s+out|eliminated|excluded"
    r"|not\s+(?:the\s+)?(?:correct|right|answer))\s*(?:[.,;!)]|$)",
    re.IGNORECASE | re.MULTILINE,
)
"""What a model that goes through the options says of one, its text aside."""
_WORD = re.compile(r"[^\S\n]*\w")
_QUESTION = re.compile(r"[^.!?\n]*\?")
_LIST = re.compile(
    r"(?:[\s.,;:/&|+)–—-]|\b(?:and|or|und|oder|maybe|perhaps|possibly|also|then|but|both|either)\b){0,12}",
    re.IGNORECASE,
)
_SECOND = re.compile(
    r"(?:[,;/&|]|\b(?:or|and|maybe|perhaps|possibly|actually)\b)\s*"
    rf"{_OPEN}*(?P<letter>[A-HJ]){_CLOSE}*(?=\s*(?:[.,;:!?]|$))"
)
_LISTED = re.compile(r"\s[(\[]?(?P<letter>[A-J])[.):\]]+\s+[\w\ue000-\ue009]")
_SEVERAL = re.compile(
    r"\b(?:both|either|neither|between|all(?:\s+of)?|none\s+of|options?|choices?|answers?)\s+"
    r"(?:[A-J]\b\s*(?:,|and|or|nor|&)?\s*)+",
    re.IGNORECASE,
)
"""An option that speaks of others: "both A and B"."""

_ADVERB = (
    r"(?:(?:most\s+likely|likely|probably|therefore|thus|clearly|definitely|simply|actually|indeed)\s+)?"
)
_KIND = r"(?:(?:best|correct|right|final)\s+)*"
_WHAT = rf"{_ADVERB}(?:the\s+)?{_KIND}(?:(?:option|choice|answer|letter)\b\s*)*:?"
_IS = (
    r"(?:is|was|would\s+be|should\s+be|must\s+be|will\s+be|has\s+to\s+be|seems\s+to\s+be|appears\s+to\s+be)\b"
)
_ABOUT = r"(?:\s+(?:to|for|of)\s+[^.:\n]{1,80}?)?"
_NAMED = [
    re.compile(words, re.IGNORECASE | re.MULTILINE)
    for words in (
        rf"\b(?:answers?|ans|solution|conclusion|selection|prediction|response)\b[\"']?{_ABOUT}"
        rf"(?:\s+(?:option|choice|letter))?\s*(?:{_IS}|[:=→]|->|=>)\s*:?\s*{_WHAT}",
        r"[\"'](?:choice|option|letter)[\"']\s*:",
        r"\b(?:best|correct|right|final|my|selected|chosen|only)\s+(?:option|choice|letter|pick|one)\b"
        rf"{_ABOUT}\s*(?:{_IS}|[:=→])\s*:?\s*{_WHAT}",
        rf"\b(?:it|this|that)(?:'s|\s+{_IS})\s*:?\s*{_WHAT}",
        r"\b(?:I|we)(?:'d|\s+would)?\s+(?:think|believe|guess|say|conclude|answer)\b(?:\s+that\b)?\s*:?\s*"
        + _WHAT,
        r"\b(?:choose|chose|select|selected|pick|picked|go(?:ing)?\s+with|opt(?:ing)?\s+for|vote\s+for)\b\s*:?\s*"
        + _WHAT,
        r"(?:^|(?<=[.!?\n,;]))\s*(?:so|therefore|thus|hence|finally|sure|yes|okay|ok|well|in\s+conclusion|overall)"
        rf"\b[\s,:!]*(?:(?:it|this)\s+{_IS})?\s*{_WHAT}",
        r"(?:答案|正解|答え|回答|정답|답)\s*(?:应该是|应为|是|为|為|は|은|는|:)*\s*(?:选项|選項|옵션)?",
        r"(?:选择|選擇|应选|选|選)(?!项|項)\s*(?:选项|選項)?",
    )
]
"""What leads to the letter in a sentence that names it."""
_CORRECT = re.compile(
    rf"(?<![A-Za-z0-9'])(?P<letter>[A-Z]){_CLOSE}*\s+(?:is|would\s+be|must\s+be|seems|appears\s+to\s+be)\s+(?i:{_ADVERB})"
    r"(?:(?:the|my)\s+)?(?:only\s+)?(?:answer\b|(?:best|correct|right|most\s+\w+)\b"
    r"(?:\s+(?:answer|option|choice|one|match|letter)\b)?(?=\s*(?:[.,;:!?]|$|because\b|since\b|as\b|here\b)))"
)
"""A sentence that says of a letter that it is right."""
_ONE_OF_SEVERAL = re.compile(r"\b[A-J]\W*(?:,|\band\b|\bor\b|\bnor\b|&|/)\s*(?:\w+\s+)?\W*$")
_LAST = re.compile(
    r"(?<=[.!?:])(?<!\bvs\.)(?<!\be\.g\.)(?<!\bi\.e\.)\s+"
    rf"(?:(?P<letter>[B-HJ])|{_OPEN}*(?P<ended>[A-J])(?:\.|{_CLOSE}+\.?))\s*$"
)
_IN_BRACKETS = re.compile(r"\s[(\[](?P<letter>[A-J])[)\]][.!]?\s*$")
_TAKEN_BACK = re.compile(
    r"\b(?:no|wait|actually|sorry|correction|or|maybe|perhaps|possibly|alternatively|might\s+be|may\s+be|could\s+be)\b"
    rf"[\s,:.!-]*(?:(?:it|the\s+answer)\s*(?:'s|{_IS})\s*)?{_WHAT}",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\b(?:not|never|cannot|neither|nor|none|if|unless|whether|suppose|assuming|no\s+(?:answer|option|choice))\b|n't\b",
    re.IGNORECASE,
)
_NOT_THE = re.compile(
    r"\b(?:wrong|incorrect|false|unlikely|impossible|another|other|alternative|(?<!only\s)(?<!best\s)possible|worst|least(?:\s+\w+)?"
    r"|second(?:[\s-](?:best|most\s+likely))?|not\s+(?:the\s+)?(?:correct|right|best)?)\s*"
    r"(?:\b(?:answers?|options?|choices?|letters?|ones?)\b)?\s*:?\s*$",
    re.IGNORECASE,
)
"""Before a letter: an answer, but not the one that is given."""
_HEAD = re.compile(
    r"[\s.:,•·]*"
    rf"(?:[(\[]?(?:the\s+)?(?:(?:best|correct|right|final|my)\s+)*(?:answer|option|choice|letter|response|assistant|选项|옵션)"
    rf"\b[\"']?\s*(?:{_IS})?\s*[:=-]?\s*)?",
    re.IGNORECASE,
)

_ENDS_WITH_IS = re.compile(rf"\b{_IS}\s*$", re.IGNORECASE)
_ALONE = re.compile(rf"\W*[A-Za-z]{_CLOSE}*[\s.,;:!?]*")
_LABELLED = re.compile(
    r"\s*[(\[]?(?P<letter>[A-Ja-j])[).:\]]+(?:\s+|(?=[^\W\d_]{2}))(?P<text>\S.*?)\s*$", re.DOTALL
)
"""An option's text with a letter before it."""

_NAMES = "think|thinking|thought|reasoning|analysis"
_THOUGHT_BEGINS = re.compile(rf"[<\[◁]\s*(?:{_NAMES})\s*[>\]▷]", re.IGNORECASE)
_THOUGHT_ENDS = re.compile(rf"[<\[◁]\s*/\s*(?:{_NAMES})\s*[>\]▷]", re.IGNORECASE)
_TAGGED = re.compile(
    r"<\s*(?P<tag>answer|final_?answer|final|ans|option|choice|letter|conclusion|output|response|result)\s*>"
    r"(?P<tagged>.*?)(?:<\s*/\s*(?P=tag)\s*>|$)"
    r"|<\|begin_of_box\|>(?P<box>.*?)(?:<\|end_of_box\|>|$)"
    r"|\\f?boxed\s*(?:\{(?P<boxed>[^{}]*)(?:\}|$)|(?P<bare>[A-Za-z])\b)",
    re.DOTALL | re.IGNORECASE,
)
_TAGGED_LAST = re.compile(
    r"<\s*(?P<tag>answer|final_?answer)\s*>[^<>]*<\s*/\s*(?P=tag)\s*>\s*$", re.IGNORECASE
)
_LATEX = re.compile(
    r"\\(?:text|textbf|textit|texttt|textrm|mathrm|mathbf|mathit|mathsf|operatorname)\s*\{([^{}]*)\}"
)
_MARKUP = re.compile(
    r"</?(?:b|i|u|em|strong|p|span|code|br|mark|h[1-6])\b[^<>]*>|<\|\w+\|>|</?s>|[*`$]|\\[()\[\]]"
    r"|^[^\S\n]*\d{1,2}[.)][^\S\n]+(?=[A-J]\b)"  # the number of an item
    r"|(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])|^[^\S\n]*(?:#+|>|[-+•])[^\S\n]+",
    re.MULTILINE | re.IGNORECASE,
)
_QUOTES = str.maketrans("“”„‟«»‘’‚‛´", '""""""\'\'\'\'\'')


def parse_letter(answer: str, options: int | Sequence[str] = 4) -> str | None:
    """The letter that an answer gives, or ``None``.

    A letter is read where it

    * stands first, before a full stop, bracket, colon, comma, dash, line break, quotation, ``because``, the end, or its
      option's whole text: ``B``, ``(B)``, ``b) red``, ``B. a red ring``, ``B - red``, ``Option B``, ``B a red ring``;
    * is alone on a line, or heads the last one, or is the last sentence: ``The ring is red.\\nB``, ``It is red. B.``;
    * stands in a tag or a box, which may be cut off: ``<answer>B</answer>``, ``\\boxed{\\text{B}}``;
    * is named by a sentence: ``The best answer is B.``, ``I think it is (b)``, ``So the answer is option C``,
      ``B is correct``, ``{"answer": "B"}``.

    Bold type, code, headings, mathematics, full-width letters and a closed thinking block are read past. What an
    option's text says is no letter: ``D. Both A and B``, ``C. My friend and I``. The same letter twice is that letter.

    ``None`` are two different letters (``A, B``, ``A or B``, ``A. B. C. D.``, a list of the options, a conclusion that
    is taken back), a letter that no option has, a denied one (``The answer is not B``), an option's text without a
    letter, a word (``A man walks``, ``I think``, ``A-frame``), and thinking that did not come to its end.

    Args:
        answer: the model's text.
        options: the options' texts, with or without their letters, or only their number; at most 10.
    """
    texts = [] if isinstance(options, int) else without_letters(options)
    letters = LETTERS[: options if isinstance(options, int) else len(options)]
    found = _Reader(texts, letters).letters(_outside_thought(_normal(answer)))
    return found.pop() if len(found) == 1 and found <= set(letters) else None


def mostly_unread(unread: int, answers: int) -> bool:
    """Whether so many answers give no letter that their score says nothing: more than half, and at least three."""
    return unread >= 3 and 2 * unread > answers


def labelled(text: str) -> str | None:
    """The letter before an option's text, as in ``B. blue`` and ``(b) blue``, or ``None``."""
    found = _LABELLED.match(text)
    return found["letter"].upper() if found else None


def without_letters(options: Sequence[str]) -> list[str]:
    """The options' texts without the letters before them, where each has its own: ``A. red`` and ``(B) blue``."""
    found = [_LABELLED.match(text) for text in options]
    if all(
        match and match["letter"].upper() == letter for match, letter in zip(found, LETTERS, strict=False)
    ):
        return [match["text"] for match in found if match]
    return [text.strip() for text in options]


def _normal(text: str) -> str:
    """The text in plain characters: full-width ones and fancy quotes replaced, invisible ones and LaTeX's fonts out."""
    text = unicodedata.normalize("NFKC", text.replace("\r\n", "\n")).translate(_QUOTES)
    text = "".join(sign for sign in text if sign in "\n\t" or not unicodedata.category(sign).startswith("C"))
    return _squeezed(_LATEX.sub(r"\1", _LATEX.sub(r"\1", text)))


def _squeezed(text: str) -> str:
    """The text without empty lines and runs of blanks."""
    return re.sub(r" ?\n[\n ]*", "\n", re.sub(r"[^\S\n]+", " ", text))


def _outside_thought(text: str) -> str:
    """The text without thinking blocks; of one that did not come to its end only a tag at the end of all is left."""
    ended = list(_THOUGHT_ENDS.finditer(text))
    begun = _THOUGHT_BEGINS.search(text)
    if ended:
        after = text[ended[-1].end() :]
        text = after if after.strip() or not begun else text[: begun.start()]
        begun = _THOUGHT_BEGINS.search(text)
    if begun:
        tag = _TAGGED_LAST.search(text, begun.end())
        text = tag[0] if tag else ""
    return text


def _denied(text: str, place: int) -> bool:
    """Whether the clause that leads to this place denies or only supposes what it says, or names a lesser answer."""
    near = text[max(0, place - NEAR) : place]
    clause = re.split(r"[.!?\n,;:]", near)[-1]
    return bool(_DENIED.search(clause) or _NOT_THE.search(near))


@dataclass(frozen=True)
class _Reader:
    """Reads answers to one question; every letter that a text gives, so that two of them can be told.

    Attributes:
        texts: the options' texts, or nothing.
        allowed: the options' letters.
    """

    texts: Sequence[str]
    allowed: str

    def letters(self, text: str, depth: int = 0) -> set[str]:
        """The letters that a text gives as its answers; one that is no letter of an option may be among them."""
        if depth > MOST_NESTED:
            return set()
        marked: list[str] = []

        def taken(match: re.Match[str]) -> str:
            marked.append(
                next(part for part in match.group("tagged", "box", "boxed", "bare") if part is not None)
            )
            return " \ufffd "

        plain = _MARKUP.sub(
            lambda match: "\n" if match[0].lower().startswith("<br") else "", _TAGGED.sub(taken, text)
        )
        plain = self.masked(_squeezed(plain))
        named = list(self.named(plain))
        if marked:
            parts = [self.letters(part, depth + 1) for part in marked]
            return set().union(*parts, {letter for _, letter in named}) if all(parts) else set()
        named += self.leading(plain, named=bool(named))
        end = max((place for place, _ in named), default=len(plain))
        for match in _TAKEN_BACK.finditer(plain, end):
            if not _denied(plain, match.start()):
                named += [(end, letter) for letter in self.at(plain, match.end(), running=True)]
        return {letter for _, letter in named}

    def masked(self, text: str) -> str:
        """The text with every option's text, the longest first, replaced by as many of its option's own characters."""
        for place in sorted(range(len(self.texts)), key=lambda place: -len(self.texts[place])):
            words = _MARKUP.sub("", _normal(self.texts[place])).strip().rstrip(".!").split()
            if len("".join(words)) > 1:
                pattern = r"(?<![^\W_])" + r"\s+".join(map(re.escape, words)) + r"(?![^\W_])"
                sign = chr(TEXT_OF + place)

                def signs(match: re.Match[str], sign: str = sign) -> str:
                    return sign * len(match[0])

                text = re.sub(pattern, signs, text, flags=re.IGNORECASE)
        return text

    def at(self, text: str, start: int, *, running: bool = False) -> set[str]:
        """The letter that stands plainly at a place, with those that are listed after it; empty where none does.

        Args:
            text: markup removed, options' texts masked.
            start: where the letter is expected, after blanks and brackets.
            running: whether words precede it, so that a bare ``a`` may be the article of a text that was cut off.
        """
        found: set[str] = set()
        # A model that repeats itself lists one letter without end.
        for _ in range(MOST_LISTED):
            letters, after = self.one(text, start, running)
            found |= letters
            if after is None or len(found) > 1:
                break
            listed = _LIST.match(after)
            text, start, running = after, listed.end() if listed else 0, False
        return found

    def one(self, text: str, start: int, running: bool) -> tuple[set[str], str | None]:
        """The letter at a place with others that its sentence offers, and the text after it, where a list may go on."""
        match = _LETTER.match(text, start)
        if match is None:
            return set(), None
        letter, end = match["letter"].upper(), match.end()
        place, following = LETTERS.find(letter), text[end : end + 1]
        article = running and match["letter"] in "ai" and not (match["open"] or match["close"])
        if (article and following not in (".", ":")) or (
            match["close"][-1:] in ("'", '"') and following.isalnum()
        ):
            return set(), None
        if match["letter"].isupper() and _REASON.match(text, end):
            return {letter}, None
        own = chr(TEXT_OF + place) if place >= 0 else "\0"
        said = self.texts[place].casefold() if 0 <= place < len(self.texts) else ""
        ended = _BRACKET.search(match["close"]) and match
        # A text of a single character is not masked.
        if ended is None and said:
            ended = re.compile(rf"\s+{re.escape(said)}\W*$", re.IGNORECASE).match(text, end)
        ended = ended or _TERMINATOR.match(text, end) or re.compile(rf"\s*{own}+(?=\W|$)").match(text, end)
        if ended is None or _WRONG.match(text, end) or (own in ended[0] and _WORD.match(text, ended.end())):
            return set(), None
        after = re.sub(rf"^[\s\"'(\[.:,;!)–—-]*{own}+", " \ufffd ", text[end : end + NEAR])
        cut = after.strip(" \n\"'([.:,;!)–—-").casefold()
        # The text may have been cut off.
        if cut and (cut == said or (len(cut) > 2 and said.startswith(cut))):
            return {letter}, None
        if _CALLED_WRONG.match(after):
            return set(), None
        sentence = re.split(r"[.!?\n]", after.lstrip(" .:,;)"), maxsplit=1)[0]
        others = list(_LISTED.finditer(after.split("\n", 1)[0]))
        if not _DENIED.search(sentence):
            others += _SECOND.finditer(_SEVERAL.sub(" ", sentence))
        return {letter} | {other["letter"] for other in others if other["letter"] in self.allowed}, after

    def named(self, text: str) -> Iterator[tuple[int, str]]:
        """Letters that sentences name as the answer, with their places."""
        for match in (match for pattern in _NAMED for match in pattern.finditer(text)):
            running = not match[0].rstrip().endswith((":", "=", "→", ">"))
            letters = self.at(text, match.end(), running=running)
            if letters and not _denied(text, match.start()) and not _QUESTION.match(text, match.end()):
                yield from ((match.end(), letter) for letter in letters)
        for match in _CORRECT.finditer(text):
            before = text[max(0, match.start() - NEAR) : match.start()]
            if not _denied(text, match.start()) and not _ONE_OF_SEVERAL.search(before[-40:]):
                yield match.start(), match["letter"]

    def leading(self, text: str, *, named: bool) -> list[tuple[int, str]]:
        """Letters that stand first, alone on a line or as the last sentence; without these, what heads the last one."""
        lines = []
        for line in re.finditer(r"[^\n]*\S[^\n]*", text):
            head = first[0] if (first := _HEAD.match(line[0])) else ""
            letters = self.at(line[0], len(head), running=_ENDS_WITH_IS.search(head) is not None)
            lines.append((line.start(), letters, _ALONE.fullmatch(line[0]) is not None))
        # Several lines that begin with different letters repeat the options: none of them is an answer.
        heads = [letters for _, letters, alone in lines if letters and not alone]
        many = len(heads) > 1 and len(set().union(*heads)) > 1
        found = [(start, letter) for start, letters, alone in lines if alone for letter in letters]
        if lines and not many:
            found += [(0, letter) for letter in lines[0][1]]
            for pattern in (_LAST, _IN_BRACKETS):
                last = pattern.search(text)
                if last and not _NOT_THE.search(text[: last.start()]):
                    found.append((last.start(), last[last.lastgroup or 0]))
            if not (found or named):
                found = [(lines[-1][0], letter) for letter in lines[-1][1]]
        return found
