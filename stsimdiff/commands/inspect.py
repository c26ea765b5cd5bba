"""``python -m stsimdiff inspect VIDEO``: which tokens of one video each arm keeps, and why, as a page, MP4 and GIF.

The settings are those of a run, sweeps included; nothing is scored, and nothing is stored besides these files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stsimdiff import video
from stsimdiff.commands import HELP
from stsimdiff.config.checks import expanded
from stsimdiff.errors import ConfigError, DataError, MethodFault, RunFailed
from stsimdiff.files import write_whole
from stsimdiff.terminal import say

if TYPE_CHECKING:
    from stsimdiff.config.arms import Arm
    from stsimdiff.evaluate.passes import Pass
    from stsimdiff.report.overlays import Film, OverlayArm

QUESTION = "What happens in this video?"
MAX_NEW_TOKENS = 64
SIDE = 640
"""Pixels of the longer side of a frame on the page."""
USAGE = f"""\
usage: python -m stsimdiff inspect VIDEO [question="..."] [output=DIR] [key=value ...]

Shows which video tokens each arm keeps, and why: a page, and an MP4 and a GIF for each arm.

  question="..."   what the model is asked (default: {QUESTION}); methods that read the text depend on it
  output=DIR       where the files go (default: <results>/inspect/<name of the video>)
  key=value        as for a run, sweeps included: compressor=st_simdiff,fastv budget.retention=0.3 model=...

  python -m stsimdiff inspect video.mp4 compressor=st_simdiff budget.retention=0.3
"""


@dataclass(frozen=True)
class InspectRequest:
    """What the command line says.

    Attributes:
        file: the video.
        question: what the model is asked.
        output: where the files go; None for the usual place.
        overrides: the settings.
    """

    file: Path
    question: str
    output: Path | None
    overrides: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; wrong input raises a :class:`~stsimdiff.errors.UserError` before a model is loaded."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not HELP.isdisjoint(words):
        say(USAGE.rstrip())
        return 0
    request = read_words(words)

    from stsimdiff.report import film
    from stsimdiff.report.overlays import Overlay
    from stsimdiff.report.page import overlay_page

    passes = prepare(request)
    output = request.output or passes[0][0].settings.folder.parent / "inspect" / request.file.stem
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={output}: cannot make this folder: {error.strerror}") from error
    shown, films = [], {}
    for number, (run_pass, frames) in enumerate(passes):
        name = f"{number}"
        films[name] = _film(request, frames)
        for arm, overlay_arm in answers(request, run_pass, frames, name):
            shown.append(overlay_arm)
            stills = film.stills(frames.pixels, overlay_arm, films[name].seconds)
            film.write_mp4(output / f"{arm.folder}.mp4", stills)
            film.write_gif(output / f"{arm.folder}.gif", stills)
            _say(overlay_arm, output / arm.folder)
    id_, name = request.file.stem, request.file.name
    overlay = Overlay(f"overlay-{id_}", id_, "", "inspect", name, request.question, None, shown)
    page = output / "inspect.html"
    write_whole(page, overlay_page(name, [overlay], films))
    say(f"\nPage: {page}")
    return 0


def read_words(words: Sequence[str]) -> InspectRequest:
    """The command line, taken apart.

    Raises:
        ConfigError: when there is no video, more than one, or an unknown flag.
        DataError: when the video is missing or empty.
    """
    values = {"question": QUESTION, "output": ""}
    settings, files = [], []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in values:
            values[key] = value
        elif word.startswith("-"):
            raise ConfigError(f"{word} is no flag of inspect; allowed: --help, and settings key=value")
        elif equals and not Path(word).is_file():
            settings.append(word)
        else:
            files.append(word)
    if len(files) != 1:
        which = f"{len(files)} videos ({', '.join(files)})" if files else "no video"
        raise ConfigError(
            f"inspect was given {which}; write: python -m stsimdiff inspect VIDEO [key=value ...]"
        )
    if not values["question"].strip():
        raise ConfigError(f"question={values['question']!r} is empty; leave it out to ask {QUESTION!r}")
    output = Path(expanded("output", values["output"])) if values["output"] else None
    return InspectRequest(
        video.check_file(Path(expanded("the video", files[0]))), values["question"], output, settings
    )


def prepare(request: InspectRequest) -> list[tuple[Pass, video.Frames]]:
    """The passes, and the video's frames for each; no model is loaded.

    Raises:
        UserError: for a wrong setting, or a video that cannot be decoded.
    """
    from stsimdiff.evaluate.passes import passes_of
    from stsimdiff.launchers.base import configurations

    passes = passes_of(configurations(request.overrides))
    from stsimdiff.kit.rehearsal import rehearse  # imports torch

    rehearse(passes)
    return [
        (
            run_pass,
            video.read(
                request.file, video.Sampling.of(run_pass.settings.model), run_pass.settings.benchmark.decoder
            ),
        )
        for run_pass in passes
    ]


def answers(
    request: InspectRequest, run_pass: Pass, frames: video.Frames, name: str
) -> list[tuple[Arm, OverlayArm]]:
    """What each arm of a pass answers, and its tokens.

    Args:
        request: the command line.
        run_pass: the arms that share a model, and their settings.
        frames: what its model is given.
        name: of these frames.

    Raises:
        DataError: when the model cannot process the question or the frames.
        RunFailed: when an answer takes longer than ``sample_seconds``.
    """
    from stsimdiff.evaluate.limits import SampleTimeout
    from stsimdiff.evaluate.overlays import overlay
    from stsimdiff.evaluate.questions import Question
    from stsimdiff.evaluate.session import Session
    from stsimdiff.report.arm import is_proposed
    from stsimdiff.report.overlays import OverlayArm, unpacked

    question = Question(request.file.stem, str(request.file), "inspect", request.question, MAX_NEW_TOKENS, {})
    session = Session(run_pass.settings)
    session.check(run_pass.arms.values())
    signals = session.signals(run_pass.arms.values())
    try:
        encoded = session.family.encode(frames, signals=signals)
        encoded.frames = frames
        put = session.ask(question, encoded)
    except ValueError as error:
        # A question that holds the model's video token, or frames that its tower cannot take.
        raise DataError(f"{run_pass.settings.model.name} cannot process {request.file}: {error}") from error
    grid = put.prompt.layout.grid
    overlays = []
    for arm in run_pass.arms.values():
        try:
            answered = session.answer(arm, question, put)
        except (MethodFault, SampleTimeout) as error:
            raise RunFailed(f"{arm.label}: {error}") from error
        packed = overlay(question.text, answered.trace, grid, session.family.picture(grid))
        label = f"{arm.label} at {100 * arm.budget.retention:.4g} % ({arm.budget.kind})"
        model = run_pass.settings.model.name
        proposed = is_proposed(run_pass.settings.proposed, arm.method, arm.compressor)
        overlay_arm = OverlayArm(
            arm.id, label, model, answered.text, None, "", name, **unpacked(packed), proposed=proposed
        )
        overlays.append((arm, overlay_arm))
    return overlays


def _film(request: InspectRequest, frames: video.Frames) -> Film:
    from stsimdiff.evaluate.overlays import jpegs
    from stsimdiff.report.overlays import Film

    return Film(request.file.name, jpegs(frames.pixels, SIDE), list(frames.times))


def _say(arm: OverlayArm, path: Path) -> None:
    counts = arm.counts()
    kept = len(arm.reason) - counts.get("dropped", 0)
    reasons = ", ".join(f"{name} {count}" for name, count in counts.items())
    say(f"{arm.name}: {kept} of {len(arm.reason)} tokens left ({reasons})")
    say(f"  answer: {arm.answer!r}")
    say(f"  {path}.mp4\n  {path}.gif")
