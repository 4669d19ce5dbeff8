"""Names on a hub, against a server on this machine that speaks the few endpoints it takes."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import ldm
from ldm import CheckpointError, InputError
from tests import tiny

pytest.importorskip("huggingface_hub")
COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """org/folder is a model in the layout of diffusers, org/file has one file; whatever is asked is noted."""

    root: Path
    asked: list[str]

    def files(self) -> dict[str, Path]:
        repo = "/".join(self.path.replace("/api/models", "").split("/")[1:3])
        place = self.root / repo
        return {str(p.relative_to(place)): p for p in sorted(place.rglob("*")) if p.is_file()}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/api/models/"):
            names = self.files()
            self.answer(200 if names and "/missing" not in self.path else 404, json.dumps(
                {"id": "x", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            ).encode())  # fmt: skip
            return
        name = self.path.split("/resolve/")[1].split("/", 1)[1]
        file = self.files().get(name)
        self.answer(200 if file else 404, file.read_bytes() if file else b"")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        headers = {
            "Content-Length": str(len(body)),
            "X-Repo-Commit": COMMIT,
            "Content-Type": "application/json",
        }
        headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
        if status == 404:
            headers["X-Error-Code"] = "RepoNotFound" if "api" in self.path else "EntryNotFound"
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("hub")
    pipe = tiny.make()
    (root / "org").mkdir()
    ldm.save(pipe, root / "org" / "folder", layout="diffusers")
    weights = root / "org" / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.with_suffix(".fp16.safetensors").write_bytes(b"a variant that is not asked for")
    (root / "org" / "file").mkdir()
    ldm.save(pipe, root / "org" / "file" / "model.safetensors")
    handler = type("Handler", (Hub,), {"root": root, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()


def run(code: str, cache: Path, endpoint: str, **more: str) -> str:
    """What a process of its own prints; huggingface_hub reads its settings when it is imported."""
    env = (
        os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"} | more
    )
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "NO_PROXY": "*"}
    lines = ["import ldm", "try:", f"    print({code})", "except ldm.LdmError as error:"]
    lines.append("    print(type(error).__name__, error)")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env=env, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or done.stderr[-2000:]


def test_a_folder_is_fetched_once(hub, tmp_path: Path):
    endpoint, asked = hub
    code = "ldm.load('org/folder').family.name"
    assert run(code, tmp_path, endpoint) == "sd1"
    assert asked and not any("fp16" in path for path in asked if "/resolve/" in path)
    asked.clear()
    assert run(code, tmp_path, endpoint) == "sd1"
    assert asked == []  # the cache comes first
    assert run(code, tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1") == "sd1"


@pytest.mark.slow
def test_one_file_of_a_repository(hub, tmp_path: Path):
    endpoint, asked = hub
    code = "ldm.load('org/file/model.safetensors', revision='main').family.name"
    assert run(code, tmp_path, endpoint) == "sd1"
    asked.clear()
    assert run(code, tmp_path, endpoint) == "sd1" and asked == []
    said = run("ldm.load('org/file')", tmp_path, endpoint)
    assert "CheckpointError" in said and "name its file" in said


@pytest.mark.slow
def test_a_download_that_broke_off_is_taken_up_again(hub, tmp_path: Path):
    endpoint, _ = hub
    code = "ldm.load('org/folder').family.name"
    assert run(code, tmp_path, endpoint) == "sd1"
    gone = next(tmp_path.glob("hub/models--org--folder/snapshots/*/vae/*.safetensors"))
    gone.unlink()
    assert run(code, tmp_path, endpoint) == "sd1" and gone.exists()


@pytest.mark.slow
def test_what_is_not_there_is_said(hub, tmp_path: Path):
    endpoint, _ = hub
    assert "org/missing cannot be had" in run("ldm.load('org/missing')", tmp_path, endpoint)
    assert "cannot be had" in run("ldm.load('org/file/other.safetensors')", tmp_path, endpoint)
    said = run("ldm.load('org/folder')", tmp_path / "empty", "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert "CheckpointError" in said and "cannot be reached" in said


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'ldm\[hub\]'"):
        ldm.load("org/name")


def test_paths_are_not_taken_for_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for path in ("models/a.safetensors", "./models/a", "a.safetensors", "/none/such", tmp_path / "a" / "b"):
        with pytest.raises(CheckpointError, match="does not exist"):
            ldm.load(path)
    with pytest.raises(InputError, match="revision is for names"):
        ldm.load(tmp_path, revision="main")
