import asyncio
import json
from types import SimpleNamespace

import pytest

from sae_posttrain.serving.engine import engine_arguments
from sae_posttrain.serving.http_requests import SteerRequests

from .conftest import make_config


@pytest.fixture
def post(make_set, tmp_path):
    """Posts a body through the middleware: status, and what the server's application or the client was given."""
    config = make_config(engine_arguments(make_set().save(tmp_path / "mine.safetensors")))
    app_state = SimpleNamespace(state=SimpleNamespace(vllm_config=config))

    def send_through(body, method="POST"):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        seen, sent = {}, []

        async def app(scope, receive, send):
            message = await receive()
            seen["body"] = message["body"]
            seen["length"] = dict(scope["headers"])[b"content-length"]
            await send({"type": "http.response.start", "status": 200, "headers": []})

        parts = [
            {"type": "http.request", "body": raw[:5], "more_body": True},
            {"type": "http.request", "body": raw[5:], "more_body": False},
        ]
        if method != "POST":
            parts = [{"type": "http.request", "body": raw}]

        async def receive():
            return parts.pop(0)

        async def send(message):
            sent.append(message)

        headers = [(b"content-length", str(len(raw)).encode())]
        scope = {"type": "http", "method": method, "headers": headers, "app": app_state}
        asyncio.run(SteerRequests(app)(scope, receive, send))
        if sent[0]["status"] == 200:
            assert int(seen["length"]) == len(seen["body"])
            return 200, seen["body"]
        return sent[0]["status"], json.loads(sent[1]["body"])["error"]["message"]

    return send_through


def test_a_steered_request_gets_a_salt_of_its_own(post):
    body = {"prompt": "a", "vllm_xargs": {"steer": "loop=-0.8"}}
    status, raw = post(body)
    passed = json.loads(raw)
    assert status == 200
    assert passed.pop("cache_salt").startswith("sae_posttrain:")
    assert passed == body
    others = [{**body, "prompt": "a b"}, {**body, "vllm_xargs": {"steer": "loop=-0.7"}}]
    others.append({"messages": "a", "vllm_xargs": body["vllm_xargs"]})
    salts = {json.loads(post(each)[1])["cache_salt"] for each in [body, body, *others]}
    assert len(salts) == 4


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a"},
        {"prompt": "How do I steer?"},
        {"prompt": "a", "vllm_xargs": {"steer": 1}, "cache_salt": "mine"},
        {"prompt": "a", "vllm_xargs": {"steer": 0}},
        {"method": "steering_report"},
        b"steer, but no JSON",
        b"",
    ],
)
def test_every_other_request_passes_as_it_is(post, body):
    assert post(body) == (200, body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "a", "vllm_xargs": {"steer": "lop=1"}}, "'lop', which this engine does not know"),
        ({"prompt": "a", "vllm_xargs": {"steer": 1, "steer_position": "all"}}, "'steer_position' is unknown"),
        ({"prompt": "a", "steer": 1}, "Put it into `vllm_xargs`"),
    ],
)
def test_what_cannot_be_steered_is_answered_with_what_is_wrong(post, body, message):
    status, said = post(body)
    assert status == 400
    assert message in said


def test_other_methods_are_left_alone(post):
    assert post(b"{}", method="GET") == (200, b"{}")
