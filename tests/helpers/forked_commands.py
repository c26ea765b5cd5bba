"""Commands as users type them, run in forks of one process that has imported everything.

A start costs a fork instead of seconds of imports, so that a test can afford to kill a command ten times. The process
is one of its own, as nothing of the tests' state may reach the commands.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # this file is run, too, where the tests' folder is on no path


class Forks:
    """``with Forks(cwd) as forks: pid = forks.start(words, log); code = forks.wait(pid)``.

    The fixture ``forks`` is one for all tests; ``forks.at(folder)`` starts its commands in another folder.
    """

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd

    def __enter__(self) -> Forks:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"}
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=self.cwd,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.stdin.close()
        self.server.wait()

    def at(self, cwd: Path) -> Forks:
        """The same process for commands that are started in another folder."""
        other = Forks(cwd)
        other.server = self.server
        return other

    def runs(self, pid: int) -> bool:
        """Whether a command that was started has not ended yet."""
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

    def start(self, words: list[str], log: Path, most_bytes: int | None = None) -> int:
        """Start ``python -m stsimdiff WORDS``; what it prints goes to ``log``.

        Args:
            words: the command line.
            log: file for standard output and error.
            most_bytes: size that no file may exceed, as on a disk that is full.
        """
        return self._asked({"start": words, "cwd": str(self.cwd), "log": str(log), "most_bytes": most_bytes})

    def wait(self, pid: int) -> int:
        """The exit code of a command that was started; negative for the signal that ended it."""
        return self._asked({"wait": pid})

    def run(self, words: list[str], log: Path, most_bytes: int | None = None) -> int:
        """Start a command and wait for its end."""
        return self.wait(self.start(words, log, most_bytes))

    def _asked(self, request: dict[str, Any]) -> int:
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())


def _serve() -> None:
    # All that a command imports late. A fork starts with it.
    import fontTools.subset  # noqa: F401
    import lmms_eval.api.task  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch

    from stsimdiff.evaluate import run, session  # noqa: F401
    from stsimdiff.kit import rehearsal  # noqa: F401
    from stsimdiff.launchers import base, in_process  # noqa: F401
    from stsimdiff.models import qwen2_5_vl  # noqa: F401
    from stsimdiff.report import figures, page, publish  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                _run(request)
            print(json.dumps(pid), flush=True)
        else:
            _, status = os.waitpid(request["wait"], 0)
            print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


def _run(request: dict[str, Any]) -> None:
    """In the child: the command line, with its own files behind standard output and error; never returns."""
    from stsimdiff.commands import cli

    null, log = (
        os.open(os.devnull, os.O_RDONLY),
        os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    )
    for number, file in enumerate((null, log, log)):
        os.dup2(file, number)
    if request["most_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["most_bytes"],) * 2)
    os.chdir(request["cwd"])
    sys.argv = ["stsimdiff", *request["start"]]
    code = 1
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
