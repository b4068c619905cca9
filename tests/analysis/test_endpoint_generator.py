"""A server of OpenAI's interface, as a stub on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sae_posttrain.analysis import EndpointGenerator

pytest.importorskip("openai")

ASKED = [[{"role": "user", "content": f"question {i}"}] for i in range(3)]


class Stub(ThreadingHTTPServer):
    """Answers by `reply(body, number of the request)`: status, and text with its reason to finish or an error."""

    daemon_threads = True

    def __init__(self, reply):
        self.reply, self.bodies, self.keys, self.paths = reply, [], [], []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers["Authorization"])
        self.server.paths.append(self.path)
        status, said, finish = self.server.reply(body, len(self.server.bodies))
        message = {"role": "assistant", "content": said}
        content = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "text": said, "finish_reason": finish}],
        }
        sent = json.dumps(content if status == 200 else {"error": {"message": said}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Starts a stub with a reply; its address."""
    servers = []

    def start(reply):
        server = Stub(reply)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server, f"http://127.0.0.1:{server.server_address[1]}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(url, **settings):
    with_settings = {"api_key": "secret", "max_retries": 1, "timeout": 10} | settings
    generator = EndpointGenerator("tiny", base_url=url, **with_settings)
    return generator, generator(ASKED, seed=5)


def test_answers_come_in_order_with_the_settings_that_were_asked_for(serve):
    server, url = serve(lambda body, _: (200, " " + body["messages"][0]["content"].upper(), "stop"))
    generator, answers = ask(url, temperature=0.5, max_tokens=7, extra_body={"top_k": 3})
    assert answers == ["QUESTION 0", "QUESTION 1", "QUESTION 2"]
    first = sorted(server.bodies, key=lambda body: body["seed"])
    assert [body["seed"] for body in first] == [5, 6, 7]
    assert first[0]["temperature"] == 0.5 and first[0]["max_tokens"] == 7 and first[0]["top_k"] == 3
    assert set(server.keys) == {"Bearer secret"} and "secret" not in json.dumps(generator.settings)
    assert EndpointGenerator("m", base_url="http://me:pw@host:8/v1?k=1").settings["base_url"] == "http://host:8/v1"


def test_cut_and_single_refused_answers_are_none(serve, caplog):
    def reply(body, _):
        number = body["messages"][0]["content"][-1]
        return {"0": (200, "cut", "length"), "1": (400, "no", None), "2": (200, "whole", "stop")}[number]

    _, url = serve(reply)
    assert ask(url)[1] == [None, None, "whole"]
    assert "1 of 3 requests failed" in caplog.text


def test_cut_answers_end_with_their_last_whole_sentence(serve):
    _, url = serve(lambda *_: (200, "It was fine. I thou", "length"))
    assert ask(url, unfinished="trim")[1] == ["It was fine."] * 3


def test_a_base_model_goes_on_with_the_text_up_to_the_end_of_the_line(serve):
    server, url = serve(lambda body, _: (200, f" after {body['prompt']}", "stop"))
    generator, answers = ask(url, completions=True)
    assert answers == [f"after question {i}" for i in range(3)] and generator.settings["completions"] is True
    assert set(server.paths) == {"/v1/completions"} and {body["stop"] for body in server.bodies} == {"\n"}
    assert not any("messages" in body for body in server.bodies)


def test_a_server_that_fails_for_a_moment_is_asked_again(serve):
    server, url = serve(lambda body, number: (503, "busy", None) if number == 1 else (200, "ok", "stop"))
    assert ask(url, concurrency=1)[1] == ["ok"] * 3 and len(server.bodies) == 4


def test_a_server_that_refuses_everything_or_is_not_there_says_so(serve):
    _, url = serve(lambda body, _: (401, "bad key", None))
    with pytest.raises(
        ValueError, match=r"refused all 3 requests: .*bad key.*Check the key, the name of the model \(tiny\)"
    ):
        ask(url)
    with pytest.raises(ConnectionError, match="http://127.0.0.1:9/v1 cannot be reached .*`base_url`"):
        ask("http://127.0.0.1:9/v1", max_retries=0)


def test_settings_are_checked(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ValueError, match="set the variable OPENAI_API_KEY, or give the `base_url`"):
        EndpointGenerator("m")
    with pytest.raises(ValueError, match="address of a server, such as"):
        EndpointGenerator("m", base_url="localhost:8000")
    with pytest.raises(ValueError, match="`max_tokens` and `concurrency` must be 1 or more"):
        EndpointGenerator("m", base_url="http://localhost/v1", concurrency=0)
