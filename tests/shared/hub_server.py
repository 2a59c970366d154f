"""A Hugging Face Hub on this machine: the HTTP that huggingface_hub speaks, for datasets in folders."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class HubServer:
    """Datasets with their commits, what was asked for, and how connections are cut."""

    root: Path
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    """repo -> branch or tag -> commit"""
    gated: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    """METHOD path, and the range if there is one, of every request for a dataset"""
    cuts: dict[str, int] = field(default_factory=dict)
    """end of a file's path -> how often the connection is cut in the middle of it"""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def push(self, repo: str, dataset: Path, branch: str = "main") -> str:
        """Commit a copy of the folder `dataset`; return the commit."""
        commit = hashlib.sha1(f"{repo} {branch} {len(list(self.root.glob('*/*/*')))}".encode()).hexdigest()
        shutil.copytree(dataset, self.root / repo / commit)
        self.refs.setdefault(repo, {})[branch] = commit
        return commit

    def fetched(self, ending: str = "") -> list[str]:
        """Return the files whose contents were asked for, sorted."""
        files = [line.split()[1].split("/", 6)[6] for line in self.requests if line.startswith("GET /datasets/")]
        return sorted(name for name in files if name.endswith(ending))

    def cut(self, path: str) -> bool:
        """Return whether to cut the connection in the middle of this file."""
        with self.lock:
            for ending, left in self.cuts.items():
                if path.endswith(ending) and left > 0:
                    self.cuts[ending] -= 1
                    return True
        return False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "datasets"]
        if not is_api and parts[0] != "datasets":
            self._refuse(404, "EntryNotFound")
            return
        wanted = self.headers.get("Range")
        hub.requests.append(f"{self.command} {path}" + (f" {wanted}" if wanted else ""))
        parts = parts[2:] if is_api else parts[1:]
        repo, kind = "/".join(parts[:2]), (parts[2:] or ["revision"])[0]
        if repo not in hub.refs:
            self._refuse(404, "RepoNotFound")
            return
        revision = (parts[3:] or ["main"])[0]
        commit = hub.refs[repo].get(revision, revision)
        folder = hub.root / repo / commit
        if not folder.is_dir():
            self._refuse(404, "RevisionNotFound")
        elif is_api and kind == "revision":
            self._send(json.dumps({"id": repo, "sha": commit, "siblings": []}).encode())
        elif is_api:
            self._send(json.dumps([self._entry(file, folder) for file in sorted(folder.rglob("*"))]).encode())
        elif repo in hub.gated:
            self._refuse(403, "GatedRepo")
        else:
            self._send_file(folder.joinpath(*parts[4:]), commit)

    def _entry(self, file: Path, folder: Path) -> dict[str, object]:
        name = file.relative_to(folder).as_posix()
        if file.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40}
        return {"type": "file", "path": name, "size": file.stat().st_size, "oid": _digest(file)}

    def _refuse(self, status: int, code: str) -> None:
        self._send(b"{}", status, {"X-Error-Code": code, "X-Error-Message": code})

    def _send_file(self, file: Path, commit: str) -> None:
        if not file.is_file():
            self._refuse(404, "EntryNotFound")
            return
        content, headers = file.read_bytes(), {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": commit}
        start, status = 0, 200
        if wanted := self.headers.get("Range"):
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.command == "GET" and self.server.hub.cut(file.as_posix())
        self._send(content[start:], status, headers, cut)

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def served_hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Let huggingface_hub speak to a Hub on this machine, with a cache in `root`."""
    import huggingface_hub
    from huggingface_hub import constants

    hub = HubServer(root / "hub")
    hub.root.mkdir()
    server = _Server(hub)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template[template.index("/{repo_id}") :])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_TOKEN", "none")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        huggingface_hub.close_session()
