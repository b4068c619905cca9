"""
A Hub on this machine: the parts of its API that reading files takes, with every request written down.

As on the real one, large files are redirected to another host, which sends ranges and must not see the token.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

LARGE_BYTES = 1000
"""Files of this size are stated with their SHA-256 and redirected, as the real one does with its large files."""


class Request(NamedTuple):
    method: str
    path: str
    range: str
    num_bytes: int


@dataclass
class Answer:
    """What is about to be sent; a test may change it."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class HubServer:
    """
    Serves repositories of files.

    Args:
        change (`Callable[[str, Answer], None]`, *optional*):
            Called with the path and the answer before it is sent: a place to lie.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Path]] = {}  # by `owner/name/commit`
        self.branches: dict[str, str] = {}  # by `owner/name/branch`
        self.gated: set[str] = set()
        self.requests: list[Request] = []
        self.leaked: list[str] = []
        self.change: Callable[[str, Answer], None] = lambda path, answer: None
        self.digests: dict[Path, str] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}/cdn"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def push(self, repository: str, folder: Path, branch: str = "main") -> str:
        """Make the files in `folder` the state of a branch; returns the commit."""
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        for path in files.values():
            with open(path, "rb") as file:
                self.digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
        commit = hashlib.sha1(repr([(name, self.digests[path]) for name, path in files.items()]).encode()).hexdigest()
        self.commits[f"{repository}/{commit}"] = files
        self.branches[f"{repository}/{branch}"] = commit
        return commit

    def forget(self) -> None:
        """Begin to count anew."""
        self.requests.clear()

    def content_requests(self) -> list[Request]:
        """Those that were answered with content of files."""
        return [request for request in self.requests if request.num_bytes and "/api/" not in request.path]

    def content_bytes(self) -> int:
        return sum(request.num_bytes for request in self.content_requests())

    def answer(self, method: str, path: str, wanted_range: str) -> Answer:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self._info(found[1], unquote(found[2] or "main"))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            return self._tree(found[1], found[2])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(found[1], found[2], unquote(found[3]), wanted_range)
        if found := re.fullmatch(r"/cdn/([^/]+/[^/]+/[0-9a-f]{40})/(.+)", path):
            return _content(self.commits[found[1]][unquote(found[2])], wanted_range)
        return Answer(404)

    def _info(self, repository: str, revision: str) -> Answer:
        if repository in self.gated:
            return Answer(403, {"X-Error-Code": "GatedRepo"})
        known = [key for key in self.commits if key.startswith(f"{repository}/")]
        if not known:
            return Answer(404, {"X-Error-Code": "RepoNotFound"})
        commit = self.branches.get(f"{repository}/{revision}", revision)
        if f"{repository}/{commit}" not in known:
            return Answer(404, {"X-Error-Code": "RevisionNotFound"})
        return _json({"id": repository, "sha": commit, "siblings": []})

    def _tree(self, repository: str, revision: str) -> Answer:
        commit = self.branches.get(f"{repository}/{revision}", revision)
        if (files := self.commits.get(f"{repository}/{commit}")) is None:
            return Answer(404, {"X-Error-Code": "RevisionNotFound"})
        entries = []
        for name, path in files.items():
            size = path.stat().st_size
            entry = {"type": "file", "path": name, "size": size, "oid": "0" * 40}
            if size >= LARGE_BYTES:
                entry["lfs"] = {"oid": self.digests[path], "size": size, "pointerSize": 134}
            entries.append(entry)
        return _json(entries)

    def _resolve(self, repository: str, revision: str, file: str, wanted_range: str) -> Answer:
        if repository in self.gated:
            return Answer(403, {"X-Error-Code": "GatedRepo"})
        commit = self.branches.get(f"{repository}/{revision}", revision)
        files = self.commits.get(f"{repository}/{commit}", {})
        if file not in files:
            return Answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        path = files[file]
        size = path.stat().st_size
        headers = {"X-Repo-Commit": commit, "ETag": f'"{self.digests[path]}"'}
        if size < LARGE_BYTES:
            answer = _content(path, wanted_range)
            return Answer(answer.status, answer.headers | headers, answer.body)
        headers |= {"X-Linked-Etag": f'"{self.digests[path]}"', "X-Linked-Size": str(size)}
        return Answer(302, headers | {"Location": f"{self.cdn}/{repository}/{commit}/{file}"})


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two small packets

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        wanted_range = self.headers.get("Range", "")
        if path.startswith("/cdn/") and "Authorization" in self.headers:
            self.hub.leaked.append(path)
        answer = self.hub.answer(self.command, path, wanted_range)
        self.hub.change(path, answer)
        sent = b"" if self.command == "HEAD" else answer.body
        self.hub.requests.append(Request(self.command, path, wanted_range, len(sent)))
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


def _json(value: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _content(path: Path, wanted_range: str) -> Answer:
    size = path.stat().st_size
    with open(path, "rb") as file:
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", wanted_range):
            start, end = int(found[1]), min(int(found[2]) + 1, size)
            file.seek(start)
            return Answer(206, {"Content-Range": f"bytes {start}-{end - 1}/{size}"}, file.read(end - start))
        return Answer(200, {}, file.read())
