"""Interrupted trainings with SAELens itself: `pip install -e '.[dev,train]'`, then `pytest tests/sae_training`."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from sae_posttrain.lab.contents import MODEL, read_texts
from sae_posttrain.sae_training import saelens
from sae_posttrain.sae_training.folder import read_report
from sae_posttrain.sae_training.trainer import train_sae

from .conftest import SENTENCES

pytest.importorskip("sae_lens", reason="needs SAELens: pip install 'sae_posttrain[train]'")
pytestmark = pytest.mark.filterwarnings("default")  # SAELens and what it brings warn

ROWS = [{"text": f"{one}, then {other}"} for one, other in itertools.permutations(SENTENCES, 2)]
EVERY_STEP = 1e-9  # minutes


class Stopped(Exception):
    pass


def train(make_model, tokenizer, out, rows=ROWS, **options):
    small = {
        "num_tokens": 64 * 40,
        "batch_size": 64,
        "buffer_tokens": 500,
        "num_features": 96,
        "k": 6,
        "held_out": 0.2,
    }
    if options.get("architecture") in ("standard", "gated"):
        del small["k"]
    defaults = {**small, "blocks": [0, 1], "save_every": 0}
    return train_sae(make_model(), rows, output_dir=out, tokenizer=tokenizer, **{**defaults, **options})


def weights(folders):
    return [(folder / "sae_weights.safetensors").read_bytes() for folder in folders]


def stopped_after(last, monkeypatch, *given, **options):
    """A training that dies when it has done this many steps."""
    add = saelens.TrainingBar.add
    steps = itertools.count(1)

    def add_or_die(self, *given):
        add(self, *given)
        if next(steps) == last:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(saelens.TrainingBar, "add", add_or_die)
        with pytest.raises(Stopped):
            train(*given, **options)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "gated"])
def test_an_interrupted_training_gives_the_weights_of_an_uninterrupted_one(
    tmp_path, make_model, tokenizer, monkeypatch, architecture
):
    whole = weights(train(make_model, tokenizer, tmp_path / "whole", architecture=architecture))
    options = {"architecture": architecture, "save_every": EVERY_STEP}
    for last in (2, 6, 11):  # before the first checkpoint, during the warm-up's end, in the middle
        stopped_after(last, monkeypatch, make_model, tokenizer, tmp_path / "saes", **options)
        torch.rand(3)  # what else draws random numbers does not matter
    assert (tmp_path / "saes.checkpoint").is_dir()
    folders = train(make_model, tokenizer, tmp_path / "saes", **options)
    assert weights(folders) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saes", "whole"]
    of_whole, resumed = (read_report(tmp_path / name)[folders[0].name] for name in ("whole", "saes"))
    assert resumed["measured"]["loss_with_sae"] == of_whole["measured"]["loss_with_sae"]


def test_texts_that_fit_into_the_buffer_are_gone_on_with_too(tmp_path, make_model, tokenizer, monkeypatch):
    whole = weights(train(make_model, tokenizer, tmp_path / "whole", buffer_tokens=10_000))
    options = {"buffer_tokens": 10_000, "save_every": EVERY_STEP}
    stopped_after(30, monkeypatch, make_model, tokenizer, tmp_path / "saes", **options)
    assert weights(train(make_model, tokenizer, tmp_path / "saes", buffer_tokens=10_000)) == whole


@pytest.fixture
def interrupted(tmp_path, make_model, tokenizer, monkeypatch):
    """The output folder of a training that stopped after 8 of 40 steps."""
    stopped_after(8, monkeypatch, make_model, tokenizer, tmp_path / "saes", save_every=EVERY_STEP)
    return tmp_path / "saes"


def test_another_recipe_model_or_texts_are_refused_and_named(interrupted, make_model, tokenizer):
    with pytest.raises(ValueError, match="k was 6, is 7"):
        train(make_model, tokenizer, interrupted, k=7)
    with pytest.raises(ValueError, match=r"blocks was \[0, 1\], is \[1\]"):
        train(make_model, tokenizer, interrupted, blocks=[1])
    with pytest.raises(ValueError, match="fingerprint of the model's weights was"):
        train(lambda: make_model(seed=1), tokenizer, interrupted)
    with pytest.raises(ValueError, match="fingerprint of the texts was"):
        train(make_model, tokenizer, interrupted, rows=ROWS[1:])


def test_restart_begins_anew(interrupted, make_model, tokenizer, caplog):
    train(make_model, tokenizer, interrupted, k=7, restart=True)
    assert "Going on" not in caplog.text


def test_going_on_is_said(interrupted, make_model, tokenizer, caplog):
    train(make_model, tokenizer, interrupted)
    assert "Going on from step 7 of 40" in caplog.text


@pytest.mark.parametrize("harm", ["cut", "gone", "swapped", "no shared", "position"])
def test_a_damaged_checkpoint_says_what_to_delete(interrupted, make_model, tokenizer, harm):
    [step] = interrupted.with_name("saes.checkpoint").iterdir()
    file, other = step / "blocks.0.hook_resid_post.safetensors", step / "blocks.1.hook_resid_post.safetensors"
    match harm:
        case "cut":
            file.write_bytes(file.read_bytes()[:-10])
        case "gone":
            file.unlink()
        case "swapped":
            file.write_bytes((step / "shared.safetensors").read_bytes())
        case "no shared":
            (step / "shared.safetensors").write_bytes(other.read_bytes())
        case "position":
            record = json.loads((step / "record.json").read_text())
            (step / "record.json").write_text(json.dumps({**record, "position": [1]}))
    with pytest.raises(ValueError, match="step-7 is damaged: .*Delete this folder"):
        train(make_model, tokenizer, interrupted)
    assert not interrupted.exists()


TRAIN = """
import os, sys, torch
with open(os.environ.get("PIDS", os.devnull), "a") as file:
    print(os.getpid(), file=file)
from sae_posttrain.cli import main
torch.set_num_threads(1)
code = main(["train-sae", *sys.argv[1:]])
sys.stdout.flush(), sys.stderr.flush()
os._exit(code)  # on a busy machine gloo's threads now and then abort an interpreter that is ending
"""


@pytest.fixture
def command(tmp_path):
    """The arguments of a training of the lab's model that takes a few seconds, and of its start with a launcher."""
    rows = [{"text": row["messages"][-1]["content"]} for row in read_texts("train")[:400]]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "train.py").write_text(TRAIN)

    def build(out, *options, launcher=()):
        arguments = ["--model", str(MODEL), "--texts", str(tmp_path / "texts.jsonl"), "--blocks", "1", "2"]
        arguments += ["--out", str(out), "--num-features", "256", "--k", "8", "--num-tokens", "25600"]
        arguments += ["--batch-size", "256", "--buffer-tokens", "3000", *options]
        return [sys.executable, *launcher, str(tmp_path / "train.py"), *arguments]

    return build


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def weights_of(out):
    return {folder.name: (folder / "sae_weights.safetensors").read_bytes() for folder in out.glob("blocks.*")}


@pytest.mark.slow
def test_a_training_killed_again_and_again_gives_the_same_weights(tmp_path, command):
    run(command(tmp_path / "whole"))
    draw, stages = random.Random(0), []
    path = tmp_path / "saes.checkpoint"
    for _ in range(4):
        process = subprocess.Popen(
            command(tmp_path / "saes", "--save-every", "1e-9"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        before = {each.name for each in path.glob("step-*")}
        # a random time after this run's first checkpoint; they are written after each step, so often within one
        while process.poll() is None and {each.name for each in path.glob("step-*")} <= before:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        stages.append((".unfinished" in os.listdir(path), *sorted(each.name for each in path.glob("step-*"))))
    print(stages)
    done = run(command(tmp_path / "saes"))
    assert "Going on from step" in done.stderr
    assert weights_of(tmp_path / "saes") == weights_of(tmp_path / "whole")
    assert not path.exists()


@pytest.mark.slow
def test_two_processes_train_the_same_saes_as_one_and_go_on_for_each_other(tmp_path, command):
    run(command(tmp_path / "alone"))
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = run(command(tmp_path / "together", launcher=two))
    assert done.stdout.count("held-out tokens") == 1
    assert weights_of(tmp_path / "together") == weights_of(tmp_path / "alone")
    assert len(read_report(tmp_path / "together")) == 2

    path = tmp_path / "saes.checkpoint"
    process = subprocess.Popen(
        command(tmp_path / "saes", "--save-every", "1e-9", launcher=two),
        env={**os.environ, "PIDS": str(tmp_path / "pids")},
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not list(path.glob("step-2*")):
        time.sleep(0.01)
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    for pid in (process.pid, *pids):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    done = run(command(tmp_path / "saes"))  # by one process
    assert "Going on from step" in done.stderr
    assert weights_of(tmp_path / "saes") == weights_of(tmp_path / "alone")
