"""Steered GRPO with a real vLLM engine: weights synchronised, LoRA, several processes, and a push at a wrong block."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("vllm_training.py")

pytestmark = [
    pytest.mark.slow_vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]


@pytest.fixture
def run(help_folder, tmp_path):
    """Train in a process of its own, and return what it printed."""

    def start(*arguments: str, processes: int = 1, succeeds: bool = True):
        launch = [sys.executable]
        if processes > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        model = help_folder / "models" / "help-qwen3-7m"
        command = [*launch, str(SCRIPT), "--model", str(model), "--out", str(tmp_path / "run"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        if not succeeds:
            assert done.returncode != 0
            return done.stderr
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"explained"')))

    return start


def check(result, steps: int = 3):
    assert len(result["explained"]) == steps
    for pushed, unpushed, plain in result["explained"]:
        assert pushed < 1e-4 and plain < 1e-4  # in every step: the weights that were trained are in the engine
        assert unpushed > 0.05  # the push is not nothing
    assert all(ratio == 1 for ratios in result["ratios"] for ratio in ratios)
    trained = [entry for entry in result["logs"] if "grad_norm" in entry]
    assert len(trained) == steps and all(entry["grad_norm"] > 0 for entry in trained)
    assert all(entry["steer/advantage_share"] > 0 for entry in trained)


def test_three_steps_with_weights_synchronised_in_between(run):
    check(run())


@pytest.mark.parametrize("processes", [1, 2])
def test_the_engine_answers_watched_prompts_as_the_trained_model_does(run, processes):
    result = run("--watch", processes=processes)
    by_engine, by_model = result["watched"]
    assert len(by_engine) == 5 and by_engine == by_model
    check(result)


def test_adapters(run):
    check(run("--lora"))


def test_compiled_engine(run):
    check(run("--compile"))


def test_two_processes(run):
    check(run(processes=2))


def test_dynamic_sampling_truncated_weights_and_positions_all(run):
    settings = {"dynamic_sampling": "fresh", "off_policy_weight": "truncated", "steer_positions": "all"}
    check(run("--settings", json.dumps(settings)))


@pytest.mark.parametrize("temperature", [0.5, 0.0])
def test_cold_rows_and_steered_rows_of_their_own_temperature(run, temperature):
    """In each step vLLM's log-probabilities of the steered rows are those of the trainer, at the rows' temperature."""
    settings = {"num_cold": 1, "steer_temperature": temperature, "off_policy_weight": "truncated"}
    found = run("--settings", json.dumps(settings))
    check(found)
    trained = [entry for entry in found["logs"] if "grad_norm" in entry]
    assert all(entry["cold/advantage_share"] > 0 for entry in trained)


def test_cold_rows_alone(run):
    found = run("--settings", json.dumps({"num_steered": 0, "num_cold": 2, "cold_temperature": 0.5}))
    assert not found["explained"]  # nothing is pushed
    trained = [entry for entry in found["logs"] if "grad_norm" in entry]
    assert len(trained) == 3 and all(entry["grad_norm"] > 0 for entry in trained)
    assert all(entry["cold/advantage_share"] > 0 for entry in trained)


@pytest.mark.parametrize("own", [{}, {"steer_temperature": 0.5}, {"steer_temperature": 0.0}], ids=str)
def test_a_push_at_a_wrong_block_is_caught(run, own):
    error = run("--wrong-block", "--settings", json.dumps(own), succeeds=False)
    assert "vLLM did not push where and as far as the trainer does" in error
