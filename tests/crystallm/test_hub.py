"""hf:org/name against a local server that speaks the routes of the hub: revision, tree, file by ETag."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

from crystallm.hub import download_model
from crystallm.model.checkpoint import export_checkpoint, load_checkpoint
from crystallm.model.hf import export_hf
from crystallm.resources import resource_path

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (the extra `hf`)")

BUNDLED = "resources/model"
COMMITS = {"main": "1" * 40, "v1.0": "2" * 40}


class Hub:
    """A model hub: (repository, revision) -> folder. `requested` are the files that were downloaded."""

    def __init__(self) -> None:
        self.folders: dict[tuple[str, str], Path] = {}
        self.gated: set[str] = set()
        self.requested: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = unquote(urlsplit(request.path).path).strip("/").split("/")
        about = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if about else parts[:2])
        if repository in self.gated:
            return self.send(request, b"{}", 403, {"X-Error-Code": "GatedRepo"})
        if not any(name == repository for name, _ in self.folders):
            return self.send(request, b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        rest = parts[4:] if about else parts[2:]  # revision/REV, tree/REV, resolve/REV/FILE
        revision = next((name for name, commit in COMMITS.items() if rest[1:2] in ([name], [commit])), "")
        folder = self.folders.get((repository, revision))
        if folder is None:
            return self.send(request, b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        commit = COMMITS[revision]
        if rest[0] == "revision":
            content = {"id": repository, "sha": commit, "siblings": []}
            return self.send(request, json.dumps(content).encode())
        if rest[0] == "tree":
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            entries = [
                {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": "0" * 40}
                for f in files
            ]
            return self.send(request, json.dumps(entries).encode())
        name = "/".join(rest[2:])
        body = (folder / name).read_bytes()
        if request.command == "GET":
            self.requested.append(name)
        self.send(request, body, 200, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": commit})

    @staticmethod
    def send(
        request: BaseHTTPRequestHandler, body: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.endpoint}/")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_hf(resource_path(BUNDLED), tmp_path_factory.mktemp("hub") / "bundled", "float16")


def test_a_shared_model_is_loaded_like_any_other(hub: Hub, exported: Path):
    """The stock weights stay where they are; a second time, nothing is downloaded; and then no server is needed."""
    hub.folders["org/nacl", "main"] = exported
    model, _, info = load_checkpoint("hf:org/nacl")
    ours, _, original = load_checkpoint(resource_path(BUNDLED))
    assert info["model_hash"] == original["model_hash"]
    torch.testing.assert_close(dict(model.named_parameters()), dict(ours.named_parameters()))
    assert sorted(hub.requested) == [
        "config.json",
        "crystallm/config.json",
        "crystallm/known.npz",
        "crystallm/model.safetensors",
    ]
    load_checkpoint("hf:org/nacl")
    hub.close()
    assert load_checkpoint("hf:org/nacl")[2]["model_hash"] == original["model_hash"]
    assert len(hub.requested) == 4


def test_revisions(hub: Hub, exported: Path, tmp_path: Path):
    """A tag, its commit, and a repository that is a checkpoint itself."""
    hub.folders["org/nacl", "main"] = exported
    hub.folders["org/nacl", "v1.0"] = export_checkpoint(resource_path(BUNDLED), tmp_path / "plain", torch.bfloat16)
    tagged = download_model("hf:org/nacl@v1.0")
    assert tagged == download_model(f"hf:org/nacl@{COMMITS['v1.0']}")
    assert load_checkpoint("hf:org/nacl@v1.0")[2]["model_hash"] != load_checkpoint("hf:org/nacl")[2]["model_hash"]
    assert load_checkpoint(tagged)[2]["model_hash"] == load_checkpoint(tmp_path / "plain")[2]["model_hash"]


def test_a_model_of_another_kind(hub: Hub, exported: Path, tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    hub.folders["org/chat", "main"] = tmp_path
    with pytest.raises(ValueError, match=r"hf:org/chat is not a crystallm model: wanted crystallm/config\.json"):
        load_checkpoint("hf:org/chat")
    assert hub.requested == ["config.json"]  # told before the weights were fetched


def test_what_is_not_there(hub: Hub, exported: Path):
    hub.folders["org/nacl", "main"] = exported
    with pytest.raises(FileNotFoundError, match=rf"hf:org/nothing: no repository 'org/nothing' at {hub.endpoint};"):
        load_checkpoint("hf:org/nothing")
    with pytest.raises(FileNotFoundError, match=r"hf:org/nacl@v9: .* has no revision 'v9'"):
        load_checkpoint("hf:org/nacl@v9")
    hub.gated.add("org/secret")
    hub.folders["org/secret", "main"] = exported
    with pytest.raises(FileNotFoundError, match=r"hf:org/secret: access has to be granted at .*/org/secret"):
        load_checkpoint("hf:org/secret")
    hub.close()
    with pytest.raises(FileNotFoundError, match=r"cannot be reached at http.* and was not downloaded before \(.*Conn"):
        load_checkpoint("hf:org/nacl")


@pytest.mark.parametrize("name", ["hf:", "hf:nacl", "hf:org/nacl/more", "hf:org/na cl", "hf:org/nacl@"])
def test_a_name_that_is_none(name: str):
    with pytest.raises(ValueError, match="wanted hf:organisation/name"):
        download_model(name)


def test_a_name_that_the_hub_refuses(hub: Hub):
    with pytest.raises(ValueError, match=r"hf:org/-nacl-: "):
        download_model("hf:org/-nacl-")
