"""The client against a server of our own over HTTP, which answers as vLLM's does."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from sae_posttrain.serving.engine import engine_arguments
from sae_posttrain.serving.pushes import fingerprint
from sae_posttrain.serving.row_settings import RowSettings
from sae_posttrain.serving.steered_client import SteeredClient


class Client:
    """As much of TRL's `VLLMClient` as the proxy uses, over HTTP."""

    def __init__(self, base_url, info):
        self.base_url, self.session, self._info = base_url, requests.Session(), info

    def get_server_info(self):
        return self._info

    def reset_prefix_cache(self):
        return "reset"

    def generate(self, prompts, features=None, n=1, temperature=1.0, generation_kwargs=None):
        body = {"prompt": prompts, "n": n, "temperature": temperature, **(generation_kwargs or {})}
        choices = self.session.post(f"{self.base_url}/v1/completions", json=body).json()["choices"]
        return {
            "prompt_ids": prompts,
            "completion_ids": [choice["token_ids"] for choice in choices],
            "logprobs": [choice["logprobs"] for choice in choices],
            "logprob_token_ids": None,
        }


@pytest.fixture
def server(make_set, tmp_path):
    """Answers `[prompt's first token, 1000 * temperature, pushed or not, number of the answer]`, and counts pushes."""
    state = {"posts": [], "count": 0, "pushes": True, "rpc": True, "together": threading.Barrier(1)}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/collective_rpc":
                if not state["rpc"]:
                    return self.answer(404, {})
                row = {"features": fingerprint(make_set()), "block": 0, "count": state["count"]}
                counts = [{**row, "name": "loop"}, {**row, "name": "zh"}]
                return self.answer(200, {"results": [{"counts": counts, "errors": [], "num_errors": 0}]})
            state["posts"].append(body)
            state["together"].wait(timeout=10)  # all calls are under way at the same time
            is_steered = "steer" in body.get("vllm_xargs", {})
            choices = []
            for prompt in body["prompt"]:
                for i in range(body["n"]):
                    ids = [prompt[0], round(1000 * body["temperature"]), int(is_steered), i]
                    choices.append({"token_ids": ids, "logprobs": [-float(i)]})
            if is_steered and state["pushes"]:
                state["count"] += 4 * len(choices)
            return self.answer(200, {"choices": choices})

        def answer(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        arguments = engine_arguments(make_set().save(tmp_path / "mine.safetensors"))
        info = {
            "parallel_config": {"worker_cls": arguments["worker_cls"]},
            "additional_config": arguments["additional_config"],
        }
        state["client"] = Client(f"http://127.0.0.1:{http.server_port}", info)
        yield state
        state["client"].session.close()
        http.shutdown()
        thread.join()


@pytest.fixture
def client(server, make_set):
    return SteeredClient(server["client"], make_set())


GROUP = [RowSettings(), RowSettings(), RowSettings(sampling={"temperature": 0.2}), RowSettings(1.5)]


def test_unarmed_it_is_the_client(client, server):
    assert client.generate(prompts=[[7]], n=2)["completion_ids"] == [[7, 1000, 0, 0], [7, 1000, 0, 1]]
    assert client.reset_prefix_cache() == "reset"
    assert server["posts"] == [{"prompt": [[7]], "n": 2, "temperature": 1.0}]


def test_answers_come_back_in_the_order_of_the_rows(client, server):
    server["together"] = threading.Barrier(3)  # plain, cold and steered
    with client.armed(GROUP * 2):
        out = client.generate(prompts=[[7, 1], [8, 1]], n=4, temperature=0.9, generation_kwargs={"seed": 1})
    assert out["prompt_ids"] == [[7, 1], [8, 1]]
    assert out["completion_ids"] == [
        [first, *rest] for first in (7, 8) for rest in ([900, 0, 0], [900, 0, 1], [200, 0, 0], [900, 1, 0])
    ]
    assert out["logprobs"] == [[-float(ids[3])] for ids in out["completion_ids"]]
    assert out["logprob_token_ids"] is None
    assert {post["seed"] for post in server["posts"]} == {1}


def test_only_steered_rows_carry_a_salt_and_one_for_each_length(client, server, make_set):
    with client.armed([RowSettings(), RowSettings(1.5)] * 3):
        client.generate(prompts=[[7], [8, 1], [9]], n=2)
    said = {len(post["prompt"]): post for post in server["posts"]}
    plain, same_length, other_length = said[3], said[2], said[1]
    assert "cache_salt" not in plain and "vllm_xargs" not in plain
    assert same_length["prompt"] == [[7], [9]] and other_length["prompt"] == [[8, 1]]
    known = fingerprint(make_set())
    assert same_length["cache_salt"] == RowSettings(1.5).salt(known, 1)
    assert other_length["cache_salt"] == RowSettings(1.5).salt(known, 2)
    assert same_length["vllm_xargs"] == RowSettings(1.5).extra_args(known)


def test_without_features_any_server_will_do(server):
    server["rpc"] = False
    server["client"]._info = {"parallel_config": {"worker_cls": "auto"}}
    client = SteeredClient(server["client"], None)
    with client.armed([RowSettings(), RowSettings(sampling={"temperature": 0.2})]):
        out = client.generate(prompts=[[7]], n=2)
    assert out["completion_ids"] == [[7, 1000, 0, 0], [7, 200, 0, 0]]
    with pytest.raises(ValueError, match="no `feature_set` was given"), client.armed([RowSettings(1.0)]):
        pass


def test_a_group_may_have_its_steered_rows_anywhere(client):
    with client.armed([RowSettings(1.5), RowSettings(), RowSettings(), RowSettings(1.5)]):
        out = client.generate(prompts=[[7], [8]], n=2)
    assert [ids[2] for ids in out["completion_ids"]] == [1, 0, 0, 1]
    assert [ids[0] for ids in out["completion_ids"]] == [7, 7, 8, 8]


def test_a_given_salt_and_other_arguments_are_kept(client, server):
    with client.armed([RowSettings(1.5)]):
        client.generate(prompts=[[7]], generation_kwargs={"cache_salt": "mine", "vllm_xargs": {"other": 1}})
    [post] = server["posts"]
    assert post["cache_salt"].endswith("|mine")
    assert post["vllm_xargs"]["other"] == 1 and post["vllm_xargs"]["steer"] == "1.5"


def test_a_server_that_does_not_push_is_caught(client, server):
    server["pushes"] = False
    with pytest.raises(ValueError, match="4 tokens, but only 0 positions"), client.armed([RowSettings(1.0)]):
        client.generate(prompts=[[7]])


def test_a_server_that_cannot_steer_is_refused(server, make_set):
    server["rpc"] = False
    with pytest.raises(ValueError, match="no development endpoints.*vllm-serve"):
        SteeredClient(server["client"], make_set())
    server["client"]._info = {"parallel_config": {"worker_cls": "auto"}}
    with pytest.raises(ValueError, match="ignores steering.*vllm-serve"):
        SteeredClient(server["client"], make_set())


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ([RowSettings(1.0)], {"n": 2}, "1 rows are armed, but 2 answers to 1 prompts"),
        ([RowSettings({"ko": 1.0})], {}, "'ko', which is not in the feature set"),
        ([RowSettings(1.0)], {"generation_kwargs": {"n": 2}}, "sets `n` or a `steer`"),
        ([RowSettings(1.0)], {"generation_kwargs": {"vllm_xargs": {"steer": 1}}}, "sets `n` or a `steer`"),
        ([RowSettings(1.0)], {"features": [{"image": 1}]}, "cannot steer a prompt with images.*colocate"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_anything_is_posted(client, server, rows, given, message):
    with pytest.raises(ValueError, match=message), client.armed(rows):
        client.generate(prompts=[[7]], **given)
    assert server["posts"] == []
