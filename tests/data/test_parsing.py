"""Which answers are a letter, and which are not."""

from __future__ import annotations

import importlib
import random
import time

import pytest

from stsimdiff.data.parsing import parse_letter, without_letters

TEXTS = ["a red ring", "a blue ring", "My friend and I", "Both A and B"]
FIRST = [
    *("B", "b", " B\n", "(B)", "[B]", "{B}", "B.", "B)", "(B", "B,", "B;", "B!", "'B'", '"B"', "“B”", "B]"),
    *("B. a red ring", "B: a red ring", "B, since", "(B) red", "b) red", "(b) red", "B.a blue ring", "B : blue"),
    *("B - a blue ring", "B – blue", "B—blue", "B -", "B\nThe ring is blue.", "B\r\nThe ring", "B\nA man walks in."),
    *('B: "a blue ring"', '"B: a blue ring"', "B (a blue ring)"),
    *("B because it is blue", "B, not A", "B. Both A and C"),
    *("B - A red ring or I-beam", "B. A red ring or I-beam"),
    *("B. B. B.", "B, B", "B\n\nOption A, C, and D are wrong."),
    *("B) a blue ring\nExplanation: A is wrong", "B. Red ring, because A and C do not appear"),
    *("Option B", "Option (B)", "(Option B)", "1. B"),
    *("choice B", "Answer B", "Answer - B", "Answer\nB", "ASSISTANT: B"),
    *("- B", "> B", "**B**", "**B.** blue", "__B__"),
    *("`B`", "```\nB\n```", "$B$", "\\(B\\)", "\\text{B}", "<b>B</b>", "<p>B</p>", "B<br>", "B</s>", "B<|im_end|>"),
    *("Ｂ", "Ｂ．", "（Ｂ）", "Ｂ：blue", "B。", "【B】"),
    *("B：蓝色", "Ⓑ", "\ufeffB", "B\u200b", "B\x00", "B\ud800", "['B']"),
]  # fmt: skip
MARKED = [
    *("<answer>B</answer>", "<answer>\nB\n</answer>", "<answer>B", "<ANSWER>(B) blue</ANSWER>", "<final>B</final>"),
    *("<answer>The answer is B</answer>", "\\boxed{B}", "$\\boxed{\\text{B}}$", "\\boxed{\\mathbf{B}}", "\\boxed{B"),
    *("\\boxed{(B)}", "\\boxed{B. a blue ring}", "\\boxed{\\text{(B) blue}}", "<|begin_of_box|>B<|end_of_box|>"),
    *("The final answer is $\\boxed{B}$. I hope it is correct.", "<answer>\\boxed{B}</answer>", "\\[\\boxed{B}\\]"),
    *("<think>x</think>B", "<think>\nA? The answer is C\n</think>\n\nB", "A </think> B", "◁think▷A◁/think▷B"),
    *("<think>I will say <answer>A</answer></think><answer>B</answer>", "<think>A? so <answer>B</answer>"),
    "<thinking>The answer is A.</thinking>The answer is **B**.",
]  # fmt: skip
NAMED = [
    *("The best answer is B.", "Answer: B", "The answer is (B)."),
    *("answer: b", "The correct option is B", "Answer is: B"),
    *("The answer is option B", "I think it is (b)", "It is B.", "It's B", "B is correct", "Option B is correct."),
    *("B is the correct answer", "I choose B.", "I'd go with (b).", "I would pick option B", "So the answer is B."),
    *("The ring is blue. The answer is B.", "Therefore, B.", "So, (B)"),
    *("Final answer: B", "**Answer:** B", "### Answer: B"),
    *('{"answer": "B"}', '{"choice": "B", "reason": "A is wrong"}'),
    *("Since it is not red, the answer is B.", "Ans: B"),
    *("The answer is B, not A.", "The answer is:\n\nB", "The correct choice is B: a blue ring", "My answer: (B)"),
    *("The answer to the question is B.", "I believe the answer is B", "Sure! The answer is B.", "THE ANSWER IS B"),
    *("The most likely answer is B", "The answer would be B", "B is my answer", "The only possible answer is B"),
    *("The other answers are wrong. B", "The ring is not red: B", "I do not see a red ring (B)", "There are 4. B"),
    *("The answer is clearly B", "It must be B", "Best option: (B)"),
    *("The answer is B because A and C are wrong.", "The correct letter is B", "答案是B。"),
    *("答案：B", "정답은 B", "答えはB"),
    *("Option A says red, option B says blue. So the answer is B.", "(A) is wrong, (C) is wrong, (B) is correct."),
    *("A. red\nB. blue\nC. green\nSo the answer is B.", "A: no.\nB: yes.\nSo B.", "B is right, A is wrong"),
    *("The ring is blue.\nB", "The ring is blue.\n\n(B)"),
    *("The ring is blue. B.", "The ring is blue. B", "a blue ring (B)"),
    *("The video shows a ring.\n\nThe answer is:\n\n**B. a blue ring**", "The ring is blue.\nB. a blue ring"),
]  # fmt: skip


@pytest.mark.parametrize("options", [4, TEXTS], ids=["number", "texts"])
@pytest.mark.parametrize("answer", FIRST + MARKED + NAMED)
def test_a_letter(answer: str, options) -> None:
    assert parse_letter(answer, options) == "B"


@pytest.mark.parametrize("options", [4, TEXTS], ids=["number", "texts"])
@pytest.mark.parametrize(
    "answer",
    [
        *("", " ", "A man walks", "a man", "Because", "E", "E."),
        *("The red one", "A or B", "A, or B", "I", "AB", "3", "J"),
        *("Answer", "Answer:", "(", "option", "A, B"),
        *("A and B", "A. B. C. D.", "A.B.", "I think", "B I think", "B, C"),
        *("a red ring", "My friend and I", "Both A and B", "Either A or B"),
        *("Only A and B", "A/B", "A & B", "A B", "a, b"),
        *("(A) (B)", "(A)(B)", "A; B", "A-B", "A–B", "A|B"),
        *("A + B", "A to D", "A\nB", "A\nB\nC\nD", "(A) or (B)", "A: B"),
        *("**A** or **B**", "A, B, C or D", "A. red ring\nB. blue ring", "A. red B. blue C. green", "['A', 'B']"),
        *("The answer is not B", "The answer isn't B", "I don't think it is B"),
        *("It is not B but", "Not B", "B or not B"),
        *("The answer is A or B", "The answer is A, B"),
        *("Answer: A / B", "choose A or B", "The answer is neither A nor B"),
        *("The answer is A. The answer is B.", "A. The answer is B", "The answer is A. No, B.", "A, or maybe B"),
        *("The answer is A, or maybe B", "So the answer is A.\nSo the answer is B."),
        *("E. The answer is B", "The answer is E"),
        *("B-movie", "D-Day", "A-frame", "A's", "A.M."),
        *("A.I. robots", "a.k.a. the", "e.g. this", "C++", "C'mon", "B12"),
        *("A smart phone", "The answer is a", "The answer is a red ring"),
        *("It is a", "The answer is A man", "A (tall) man"),
        *("A is a man", "A is wrong", "B is not correct"),
        *("(A) is not the answer", "A or B is correct", "B&B", "Vitamin B"),
        *("Neither A nor B is correct", "<think>The answer is B", "<think> B", "x</think>", "<think>B</think>"),
        *("Is the answer B?", "If the answer is B, then", "The answer might be B", "It could be A or B.", "aB", "B/"),
        *("\\boxed{A} and \\boxed{B}", "<answer>A</answer><answer>B</answer>"),
        *("<answer>letter</answer>", "\\boxed{}"),
        *("<answer>A or B</answer>", "The answer is A. \\boxed{B}"),
        *("The man walks in. A", "What is it: A, B, C or D?"),
        *("A as well as B", "A -> B -> C", "A vs. B", "1. A\n2. B", "1. A, 2. B", "A. red ring B. blue ring"),
        *("A. is incorrect", "A: ruled out", "B. ruled out", "Wrong answer: B"),
        *("The wrong answer is A", "The least likely answer is B", "Another possible answer is B"),
        *("Answer with the option's letter from the given choices directly.", "The correct answers are A and B"),
    ],
)  # fmt: skip
def test_no_letter(answer: str, options) -> None:
    assert parse_letter(answer, options) is None


@pytest.mark.parametrize("options", [4, TEXTS], ids=["number", "texts"])
@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("D. Both A and B", "D"),
        ("D) Both A and B are right", "D"),
        ("The answer is D. Both A and B", "D"),
        ("**D. Both A and B**", "D"),
        ("<answer>D. Both A and B</answer>", "D"),
        ("\\boxed{\\text{D. Both A and B}}", "D"),
        ("D. Neither A nor C", "D"),
        ("D: All of A, B and C", "D"),
        ("C. My friend and I", "C"),
        ("The answer is option C", "C"),
        ("a", "A"),
        ("A. man", "A"),
    ],
)
def test_what_an_options_text_says_is_no_letter(answer: str, letter: str, options) -> None:
    assert parse_letter(answer, options) == letter


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        ("B a blue ring", TEXTS, "B"),
        ("B a blue ring", 4, None),
        ("B 4", ["3", "4", "5"], "B"),
        ("B 5", ["3", "4", "5"], None),
        ("A. a red ring B. a blue ring", TEXTS, None),
        ("(A) a red ring is wrong.", TEXTS, None),
        ("C My friend and I", ["x", "y", "my friend and I"], "C"),
        ("D. A and B", ["x", "y", "z", "A and B"], "D"),
        ("D A and B.", ["x", "y", "z", "A and B"], "D"),
        ("D. A and", ["x", "y", "z", "A and B"], "D"),
        ("D. A and B", ["x", "y", "z", "w"], None),
        ("A and B", ["x", "y", "z", "A and B"], None),
        ("B. A", ["B", "A", "D", "C"], "B"),
        ("B. A", ["w", "x", "y", "z"], None),
        ("C. Samuel A. Jackson", ["x", "y", "Samuel A. Jackson"], "C"),
        ("I. a man and I", [f"{i}{i}" for i in range(10)], "I"),
        # Article or letter: with the text after it, both mean option A, unless the article is part of another text.
        ("A man walks", ["man walks", "x", "y"], "A"),
        ("A man walks", ["man walks", "A man walks", "y"], None),
        ("A man walks into a bar", ["man walks", "x", "y"], None),
        # The options may carry their letters already, as those of VideoMME do.
        ("D. Both A and B", ["A. red.", "B. blue.", "C. green.", "D. Both A and B."], "D"),
        ("B blue", ["A. red.", "B. blue.", "C. green.", "D. white."], "B"),
        ("B blue", ["(A) red", "(B) blue"], "B"),
        ("E", 5, "E"),
        ("F", 5, None),
        ("E. five", list("vwxyz"), "E"),
    ],
)
def test_the_options_texts_decide(answer: str, options, letter: str | None) -> None:
    assert parse_letter(answer, options) == letter


def test_options_without_their_letters() -> None:
    assert without_letters(["A. red", "(B) blue ", "c) green"]) == ["red", "blue", "green"]
    # A name that begins like a letter is no letter; neither are letters in another order.
    for kept in (["A. Smith", "Bob"], ["B. red", "A. blue"], ["red", "blue"]):
        assert without_letters(kept) == kept


STOCK = [
    "B - a blue ring",
    "B – a blue ring",
    'B "a blue ring"',
    "B a blue ring",
    "The ring is blue.\nB",
    "The answer is option B",
    "I think it is (B)",
    "It is B.",
    "B because it is blue",
    "B is correct",
    "The ring is blue. The answer is B.",
    "<think>x</think>B",
    "a blue ring (B)",
    "B;",
    "I choose B.",
    "B. Both A and C",
    "So the answer is B.",
    "(B",
    "B)",
    "(B)",
    "B",
]
"""Plain forms that the functions of all four benchmarks read."""


@pytest.mark.parametrize("answer", STOCK)
def test_what_all_stock_functions_read_is_read(answer: str, monkeypatch) -> None:
    monkeypatch.setattr(random, "choice", lambda choices: pytest.fail("drew lots"))
    stock = {
        name: importlib.import_module(f"lmms_eval.tasks.{name}.utils")
        for name in ("videomme", "mlvu", "longvideobench", "egoschema")
    }
    by_letter = dict(zip("ABCD", TEXTS, strict=True))
    read = [
        stock["videomme"].extract_characters_regex(answer),
        stock["mlvu"].extract_characters_regex(answer),
        stock["longvideobench"].parse_multi_choice_response(answer, list("ABCD"), by_letter),
    ]
    if answer != "B)":
        read.append(stock["egoschema"].parse_multi_choice_response(answer, list("ABCD"), by_letter)[0])
    assert {*read, parse_letter(answer, TEXTS)} == {"B"}


@pytest.mark.parametrize(
    "answer",
    [
        *("A, " * 5000, "The answer is B. " * 2000, "<think>" * 3000),
        *("<answer>" * 3000, "(" * 20000, "\\boxed{" * 3000),
        *("\n" * 20000 + "B", " " * 20000 + "x", "* " * 20000 + "B"),
        *("B" + " ." * 20000, "B. " + "or " * 9000, "-" * 9000),
    ],
)  # fmt: skip
def test_a_model_that_repeats_itself_costs_no_time(answer: str) -> None:
    start = time.process_time()
    parse_letter(answer, TEXTS)
    assert time.process_time() - start < 3
