"""The hub, played by a server on this machine: it hangs, it fails, and it hands out parts of archives."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
import urllib.parse
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import HfFileSystem, constants

from helpers.paths import MINIATURES
from stsimdiff.commands import data as command
from stsimdiff.data import hub
from stsimdiff.data.benchmarks import EGOSCHEMA, VIDEOMME, default_root

MINIATURE = MINIATURES / "egoschema"
SHA = "0123456789abcdef0123456789abcdef01234567"


class Answers(BaseHTTPRequestHandler):
    """Answers for one repository, as the hub does; ``server.trouble`` may be a number of failures, or ``hang``."""

    def log_message(self, *arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        said = self.rfile.read(int(self.headers["Content-Length"]))
        asked = urllib.parse.parse_qs(said.decode()).get("paths") or json.loads(said)["paths"]
        self._json([self._file(path) for path in asked if (self.server.folder / path).is_file()])

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        if path == "/api/agent-harnesses":  # which huggingface_hub asks for once a day, whatever is fetched
            self.send_error(404)
            return
        self.server.asked.append(path)
        if self.server.trouble == "hang":
            self.server.over.wait(20)
            return
        if self.server.trouble:
            self.server.trouble -= 1
            self.send_error(503)
        elif "/resolve/" in path:
            self._resolve(self.server.folder / path.split(f"/resolve/{SHA}/")[1])
        elif "/tree/" in path:
            self._json([self._file(name) for name in self._names()])
        else:
            files = [{"rfilename": name, "size": self._file(name)["size"]} for name in self._names()]
            self._json({"id": EGOSCHEMA.hub, "sha": SHA, "private": False, "disabled": False, "downloads": 0,
                        "likes": 0, "tags": [], "siblings": files})  # fmt: skip

    def _names(self) -> list[str]:
        found = sorted(path for path in self.server.folder.rglob("*") if path.is_file())
        return [path.relative_to(self.server.folder).as_posix() for path in found]

    def _file(self, name: str) -> dict:
        size = (self.server.folder / name).stat().st_size
        return {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(name.encode()).hexdigest()}

    def _json(self, said) -> None:
        content = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _resolve(self, file: Path) -> None:
        content, span = file.read_bytes(), self.headers.get("Range")
        whole = len(content)
        first, last = 0, whole - 1
        if span:
            first, _, end = span.removeprefix("bytes=").partition("-")
            first, last = int(first), min(int(end or whole - 1), whole - 1)
        content = content[first : last + 1]
        self.send_response(206 if span else 200)
        self.send_header("ETag", '"' + hashlib.sha1(file.name.encode()).hexdigest() + '"')
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{whole}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
            self.server.sent[file.name] = self.server.sent.get(file.name, 0) + len(content)


@pytest.fixture
def served(tmp_path: Path, monkeypatch):
    """A hub whose repository is the folder ``hub`` of the test."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.folder, server.trouble, server.asked, server.sent = tmp_path / "hub", 0, [], {}
    server.over = threading.Event()
    server.folder.mkdir()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, name, getattr(constants, name))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub, "PAUSE", 0.0)
    HfFileSystem.clear_instance_cache()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    HfFileSystem.clear_instance_cache()


def egoschema(folder: Path) -> dict[str, bytes]:
    """The repository: both sets' questions, and the videos in two zips among much that the subset does not need."""
    for name in ("Subset", "GENERATION"):
        shutil.copytree(MINIATURE / name, folder / name)
    videos = {path.name: path.read_bytes() for path in sorted((MINIATURE / "videos").glob("*.mp4"))}
    for number, names in enumerate((list(videos)[:5], list(videos)[5:]), start=1):
        with zipfile.ZipFile(folder / f"videos_chunked_{number:02d}.zip", "w") as archive:
            archive.writestr("videos/other.mp4", bytes(2**22))
            for name in names:
                archive.writestr(f"videos/{name}", videos[name])
            archive.writestr("videos/another.mp4", bytes(2**22))
    return videos


def test_of_the_subset_only_its_videos_are_read(served, monkeypatch, capsys) -> None:
    monkeypatch.setattr(hub, "BLOCK", 2**14)
    videos = egoschema(served.folder)
    assert command.main(["egoschema"]) == 0
    root, said = default_root("egoschema"), capsys.readouterr().out
    assert "egoschema: 0.0 GiB, read out of archives of 0.0 GiB, which are not fetched whole" in said
    assert {path.name: path.read_bytes() for path in root.rglob("*.mp4")} == videos
    assert not list(root.rglob("*.zip")) and not list(root.rglob("GENERATION"))
    zips = sum(path.stat().st_size for path in served.folder.glob("*.zip"))
    assert sum(served.sent[f"videos_chunked_0{n}.zip"] for n in (1, 2)) < zips / 10
    asked = len(served.asked)
    assert command.main(["egoschema"]) == 0 and len(served.asked) == asked
    # A fetch that was stopped reads only what is lacking.
    (root / hub.FETCHED).unlink()
    (root / "videos" / "mini-7.mp4").unlink()
    served.sent.clear()
    assert command.main(["egoschema"]) == 0
    assert {path.name: path.read_bytes() for path in root.rglob("*.mp4")} == videos
    one, other = (served.sent[f"videos_chunked_0{n}.zip"] for n in (1, 2))
    assert one < other, "of the first only the list"


def test_what_no_zip_says_by_name_is_fetched_whole(served, capsys) -> None:
    egoschema(served.folder)
    (served.folder / "videos_chunked_02.zip").rename(served.folder / "rest.zip.part")
    shutil.make_archive(str(served.folder / "rest"), "tar", MINIATURE, "videos")
    (served.folder / "rest.zip.part").unlink()
    assert command.main(["egoschema"]) == 0
    said = capsys.readouterr().out
    assert f"3 of 8 videos are in no zip of {EGOSCHEMA.hub} by name: all of it is fetched" in said
    assert "2 archives" in said and list(default_root("egoschema").glob("*.tar"))


def test_the_full_set_is_fetched_whole(served) -> None:
    egoschema(served.folder)
    assert command.main(["benchmark=egoschema_full", "keep_archives=false"]) == 0
    root = default_root("egoschema_full")
    assert len(list(root.rglob("mini-?.mp4"))) == 8 and not list(root.rglob("*.zip"))
    assert (root / "GENERATION").is_dir()


def test_a_hub_that_fails_twice(served, capsys) -> None:
    egoschema(served.folder)
    served.trouble = 2
    assert command.main(["egoschema"]) == 0
    said = capsys.readouterr().out
    assert "try 2 of 3" in said and "try 3 of 3" in said and "503" in said
    served.trouble = 3
    assert command.main(["mlvu"]) == 2
    assert f"cannot fetch {'sy1998/MLVU_dev'}" in capsys.readouterr().err and served.trouble == 0


def test_a_hub_that_hangs(served, monkeypatch, capsys) -> None:
    served.trouble = "hang"
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    started = time.monotonic()
    assert command.main(["videomme"]) == 2
    assert time.monotonic() - started > 2.9 and len(served.asked) == 3
    assert f"cannot fetch {VIDEOMME.hub}: " in capsys.readouterr().err


def test_the_hub_has_half_a_minute(served) -> None:
    egoschema(served.folder)
    assert command.main(["egoschema"]) == 0
    assert constants.HF_HUB_ETAG_TIMEOUT == constants.HF_HUB_DOWNLOAD_TIMEOUT == hub.PATIENCE == 30
