import json
import shlex

import pytest

from sae_posttrain.serving.engine import as_shell, check_server, engine_arguments, server_command
from sae_posttrain.serving.pushes import fingerprint


@pytest.fixture
def path(make_set, tmp_path):
    return make_set().save(tmp_path / "loops.safetensors")


def info(arguments):
    """What `/server_info` shows of these arguments."""
    return {
        "parallel_config": {"worker_cls": arguments["worker_cls"]},
        "additional_config": json.loads(json.dumps(arguments["additional_config"])),
    }


def test_the_arguments_name_worker_features_and_unit(path, make_set):
    arguments = engine_arguments(path)
    assert arguments["worker_cls"] == "sae_posttrain.serving.vllm_worker.SteeringWorker"
    config = arguments["additional_config"]["sae_posttrain"]
    assert config["features"] == {"loops": {"path": str(path), "fingerprint": fingerprint(make_set())}}
    assert config["unit"] == "norm"
    both = engine_arguments({"a": path, "b": path})["additional_config"]["sae_posttrain"]
    assert list(both["features"]) == ["a", "b"]


def test_a_folder_gives_its_name(make_set, tmp_path):
    make_set().save(tmp_path / "zh" / "features.safetensors")
    for given in (tmp_path / "zh", tmp_path / "zh" / "features.safetensors"):
        assert list(engine_arguments(given)["additional_config"]["sae_posttrain"]["features"]) == ["zh"]


def test_names_that_requests_cannot_write_are_refused(path):
    with pytest.raises(ValueError, match="'a/b' cannot be the name"):
        engine_arguments({"a/b": path})
    with pytest.raises(ValueError, match="empty"):
        engine_arguments({})


def test_the_command_is_typed_as_it_is_printed(path):
    environment, words = server_command("org/model", path, more=["--port", "8100"])
    typed = shlex.split(as_shell(environment, words))
    assert typed[0] == "VLLM_SERVER_DEV_MODE=1"
    assert typed[1:] == words
    assert words[:3] == ["vllm", "serve", "org/model"]
    assert json.loads(words[words.index("--additional-config") + 1]) == engine_arguments(path)["additional_config"]
    assert words[words.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert words[-2:] == ["--port", "8100"]
    _, alone = server_command("org/model", path, training=False)
    assert "--weight-transfer-config" not in alone
    assert "--worker-cls" in alone


def test_a_server_that_was_started_for_these_features_is_accepted(path, make_set):
    check_server(info(engine_arguments(path)), make_set())
    check_server(info(engine_arguments(path, unit="raw")), make_set(), unit="raw")


def test_a_server_that_would_not_push_is_refused_with_the_command(path, make_set):
    how = "sae-posttrain vllm-serve MODEL --features FILE"
    with pytest.raises(ValueError, match=f"worker 'auto', which ignores steering.*{how}"):
        check_server({"parallel_config": {"worker_cls": "auto"}, "additional_config": {}}, make_set())
    with pytest.raises(ValueError, match=f"unit 'norm', not 'raw'.*{how} --unit raw --print"):
        check_server(info(engine_arguments(path)), make_set(), unit="raw")
    with pytest.raises(ValueError, match=rf"\(a, b\).*{how}"):
        check_server(info(engine_arguments(path)), make_set(names=("a", "b")))
