"""What the page gives, to whom, and what it shows in a browser."""

import json
import shutil
import subprocess
import threading
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest

from sae_posttrain.training.watch.record import WATCH_FILE, append
from sae_posttrain.training.watch.serve import WatchServer

ANSWER = {
    "prompt": "<img src=x onerror=\"document.title='broken'\">",
    "answer": "😀 the 文件 the the <b>",
    "lang": "en",
    "flags": {"switched": True, "right_language": True},
    "spans": [{"start": 6, "text": "文件", "excused": None}],
    "loop_text": [9, 16],
}


def watch(step, rate=0.5):
    rates = {"switched": {"count": 1, "n": 2, "rate": rate, "low": 0.1, "high": 0.9}}
    return {"step": step, "rates": rates, "eval_loss": 2.0, "seconds": 1.5, "tokens": 40, "answers": [ANSWER]}


@contextmanager
def served(folder):
    with WatchServer(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, path, method="GET", host=None, **headers):
    connection = HTTPConnection(*server.server_address)
    connection.request(method, path, headers=headers | ({"Host": host} if host else {}))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def test_the_page_follows_the_file(tmp_path):
    with served(tmp_path) as server:
        assert json.loads(ask(server, "/figures.json")[1])["watches"] == []  # the run has not begun
        append(tmp_path / WATCH_FILE, watch(10))
        answer, content = ask(server, "/figures.json")
        assert [each["step"] for each in json.loads(content)["watches"]] == [10]
        tag = answer.headers["ETag"]
        assert ask(server, "/figures.json", **{"If-None-Match": tag})[0].status == 304
        append(tmp_path / WATCH_FILE, watch(20))
        with (tmp_path / WATCH_FILE).open("a") as file:
            file.write('{"step": 30')  # being written
        answer, content = ask(server, "/figures.json", **{"If-None-Match": tag})
        assert answer.status == 200
        assert [each["step"] for each in json.loads(content)["watches"]] == [10, 20]


def test_nothing_but_the_page_can_be_had_and_only_on_this_machine(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "run").mkdir()
    with served(tmp_path / "run") as server:
        assert server.server_address[0] == "127.0.0.1"
        for path in (
            "/secret.txt",
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "/watch.jsonl",
            "//etc/passwd",
            "/page.html",
        ):
            answer, content = ask(server, path)
            assert answer.status == 404 and b"secret" not in content
        for method in ("POST", "PUT", "DELETE"):
            assert ask(server, "/", method)[0].status == 501
        assert ask(server, "/figures.json", host="evil.example")[0].status == 403  # a name that leads to this machine
        answer, content = ask(server, "/", host="localhost")
        assert answer.status == 200 and "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert b"https://" not in content and b"src=" not in content


def test_a_missing_folder_and_a_taken_port_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        WatchServer(tmp_path / "none", 0)
    with served(tmp_path) as server:
        with pytest.raises(ValueError, match="cannot be used"):
            WatchServer(tmp_path, server.server_address[1])
    with pytest.raises(ValueError, match="Port 70000 cannot be used"):
        WatchServer(tmp_path, 70000)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium, chromium-browser or google-chrome")
def test_browser_draws_rates_and_marks_faults_as_text(tmp_path):
    (tmp_path / "run").mkdir()
    append(tmp_path / "run" / WATCH_FILE, watch(10))
    append(tmp_path / "run" / WATCH_FILE, watch(20, rate=0.25))
    with served(tmp_path / "run") as server:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--virtual-time-budget=1500", "--dump-dom", server.address]
        page = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    assert "<mark>文件</mark>" in page and '<span class="loop">the the</span>' in page
    assert "25.0 % [10.0 %, 90.0 %]" in page and "eval_loss" in page
    assert "<title>Watch of run</title>" in page and "&lt;b&gt;" in page and "&lt;img" in page
