"""A page on this machine alone that shows a watched run and follows it. One file is read, and none is written."""

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from . import record

LOOPBACK = "127.0.0.1"
"""The only address that is served."""

_NAMES = (LOOPBACK, "localhost")
_PAGE = Path(__file__).with_name("page.html")
_ANSWERS_SENT = 200
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # The page holds its style and its script; nothing is asked of another machine.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'",
}


class WatchServer(ThreadingHTTPServer):
    """
    Serves the page of a run's folder at `http://127.0.0.1:PORT/`. Only the page and the figures of `watch.jsonl` can
    be asked for, by GET and from this machine.

    Args:
        run (`Path`):
            The `output_dir` of a training with a [`FaultWatchCallback`]. The file may not be there yet.
        port (`int`):
            Port to listen at; 0 takes a free one.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the port is taken or cannot be used.
    """

    daemon_threads = True

    def __init__(self, run: Path, port: int):
        if not run.is_dir():
            raise FileNotFoundError(f"There is no folder {run}. Name the `output_dir` of a training that is watched.")
        self.figures = Figures(run / record.WATCH_FILE, run.resolve().name)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"Port {port} cannot be used ({error}). Give another with `--port`, or 0.") from error

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/"


class Figures:
    """What the page shows, read anew when the file has changed."""

    def __init__(self, path: Path, name: str):
        self._path = path
        self._name = name
        self._seen: tuple[int, int] | None = None
        self._content = b""

    def read(self) -> tuple[str, bytes]:
        """A tag that changes with the file, and the figures as JSON."""
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError:
            seen = (0, 0)
        if seen != self._seen or not self._content:
            self._content = json.dumps(figures_of(record.read(self._path), self._name)).encode()
            self._seen = seen
        return f'"{seen[0]}-{seen[1]}"', self._content


def figures_of(watches: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The rates of all watches, and the answers of the last one."""
    kept = ("step", "rates", "eval_loss", "seconds", "tokens")
    last = watches[-1] if watches else {}
    fields = ("prompt", "answer", "lang", "flags", "spans", "loop_text")
    answers = [{key: each[key] for key in fields if key in each} for each in last.get("answers", [])[:_ANSWERS_SENT]]
    return {
        "run": name,
        "watches": [{key: watch.get(key) for key in kept} for watch in watches],
        "answers": answers,
        "num_answers": len(last.get("answers", [])),
    }


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer

    def do_GET(self) -> None:
        # A page of another site could reach this address under a name of its own; the browser tells the name.
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in _NAMES:
            return self._send(HTTPStatus.FORBIDDEN, b"This page is served to this machine alone.\n", "text/plain")
        if self.path == "/":
            return self._send(HTTPStatus.OK, _PAGE.read_bytes(), "text/html")
        if self.path == "/figures.json":
            tag, content = self.server.figures.read()
            if self.headers.get("If-None-Match") == tag:
                return self._send(HTTPStatus.NOT_MODIFIED, b"", "application/json", tag)
            return self._send(HTTPStatus.OK, content, "application/json", tag)
        return self._send(HTTPStatus.NOT_FOUND, b"There is only / and /figures.json.\n", "text/plain")

    def _send(self, status: HTTPStatus, content: bytes, kind: str, tag: str | None = None) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if tag is not None:
            self.send_header("ETag", tag)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request: the page asks every two seconds."""
