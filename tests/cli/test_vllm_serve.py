import json
import shlex

import pytest

from sae_posttrain.cli import main
from sae_posttrain.serving.engine import engine_arguments


@pytest.fixture
def path(make_features, tmp_path):
    return make_features().save(tmp_path / "loops.safetensors")


def test_the_command_is_printed_with_all_that_is_passed_on(path, capsys):
    assert main(["vllm-serve", "org/model", "--features", str(path), "--print", "--port", "8100"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:4] == ["VLLM_SERVER_DEV_MODE=1", "vllm", "serve", "org/model"]
    assert words[-2:] == ["--port", "8100"]
    assert json.loads(words[words.index("--additional-config") + 1]) == engine_arguments(path)["additional_config"]


def test_sets_may_be_named_and_are_served_alone(path, capsys):
    assert main(["vllm-serve", "m", "--features", f"a={path}", str(path), "--alone", "--unit", "raw", "--print"]) == 0
    words = shlex.split(capsys.readouterr().out)
    config = json.loads(words[words.index("--additional-config") + 1])["sae_posttrain"]
    assert list(config["features"]) == ["a", "loops"]
    assert config["unit"] == "raw"
    assert "--weight-transfer-config" not in words


def test_features_of_another_model_are_refused_before_the_server_starts(make_model, make_features, tmp_path, capsys):
    make_model().save_pretrained(tmp_path / "tiny")
    file = make_features(base_model="owner/other").save(tmp_path / "other.safetensors")
    words = ["vllm-serve", str(tmp_path / "tiny"), "--features", str(file), "--print"]
    assert main(words) == 2
    assert "The features were found on 'owner/other', this model is" in capsys.readouterr().err
    assert main([*words, "--allow-base-model", "tiny"]) == 0
    file = make_features(blocks=(0, 5)).save(tmp_path / "deep.safetensors")
    assert main(["vllm-serve", str(tmp_path / "tiny"), "--features", f"a={file}", "--print"]) == 2
    assert "The features 'a' are for block 5, the model has blocks 0 to 1." in capsys.readouterr().err


def test_mistakes_are_told_in_one_line(path, capsys, monkeypatch, tmp_path):
    assert main(["vllm-serve", "m", "--features", str(path), str(path), "--print"]) == 2
    assert "two sets named 'loops'" in capsys.readouterr().err
    assert main(["vllm-serve", "m", "--features", str(tmp_path / "none.safetensors"), "--print"]) == 2
    assert "none.safetensors" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["vllm-serve", "m", "--features", str(path)]) == 2
    assert "vLLM is not installed here" in capsys.readouterr().err


def test_the_server_is_run_with_its_environment(path, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: f"/somewhere/{name}")
    ran = []
    monkeypatch.setattr("os.execvpe", lambda file, words, environment: ran.append((file, words, environment)))
    assert main(["vllm-serve", "m", "--features", str(path)]) == 0
    [(file, words, environment)] = ran
    assert (file, words[:3]) == ("vllm", ["vllm", "serve", "m"])
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
