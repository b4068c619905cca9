"""Which checkpoints are gone on from: the checkpoint of a real, very small training, killed at every point."""

import json
import logging
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerState, TrainingArguments

from sae_posttrain.checkpoints import CompleteCheckpoints, last_complete_checkpoint

WRITTEN = ["model.safetensors", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
"""Files of a checkpoint in the order in which transformers writes them; `trainer_state.json` follows."""


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, x):
        return {"loss": self.linear(x).square().mean()}


class ResumableTrainer(CompleteCheckpoints, Trainer):
    pass


def make_trainer(output_dir: Path, kind=ResumableTrainer, max_steps=3, **kwargs) -> Trainer:
    torch.manual_seed(0)
    settings = {"per_device_train_batch_size": 2, "max_steps": max_steps, "save_strategy": "steps", "save_steps": 1}
    settings |= {"learning_rate": 0.1, "use_cpu": True, "report_to": "none", "disable_tqdm": True, **kwargs}
    data = [{"x": x} for x in torch.randn(6, 4)]
    return kind(Line(), TrainingArguments(str(output_dir), **settings), train_dataset=data)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    make_trainer(folder).train()
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """The folder of a training of three steps, with a checkpoint of each, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def cut(file: Path) -> None:
    """Leave the first half, as a kill in the middle of writing does."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_the_newest_checkpoint_is_gone_on_from_by_its_number(run, caplog):
    for step in (1, 2, 3):
        (run / f"checkpoint-{step}").rename(run / f"checkpoint-{step + 8}")
        state = run / f"checkpoint-{step + 8}" / "trainer_state.json"
        state.write_text(json.dumps(json.loads(state.read_text()) | {"global_step": step + 8}))
    (run / "checkpoint-best").mkdir()
    (run / "checkpoint-99").write_text("a file")
    assert last_complete_checkpoint(run) == str(run / "checkpoint-11")
    assert caplog.text == ""


def test_files_are_written_in_the_order_that_the_check_relies_on(tmp_path, monkeypatch):
    """The folder is looked at before and after each call that writes, so that at most one file is new each time."""
    written = []

    def look():
        new = {path.name for path in tmp_path.glob("checkpoint-1/*")} - set(written)
        assert len(new) <= 1, f"{sorted(new)} were written between two looks"
        written.extend(new)

    def watch(owner, name):
        write = getattr(owner, name)

        def watched(*args, **kwargs):
            look()
            write(*args, **kwargs)
            look()

        monkeypatch.setattr(owner, name, watched)

    watch(torch, "save")
    watch(TrainerState, "save_to_json")
    make_trainer(tmp_path, max_steps=1).train()
    look()
    assert written == [*WRITTEN, "trainer_state.json"]


@pytest.mark.parametrize("num_written", range(len(WRITTEN) + 1))
@pytest.mark.parametrize("last", ["whole", "half"])
def test_a_kill_at_any_point_of_writing_leaves_the_checkpoint_before(run, caplog, num_written, last):
    newest = run / "checkpoint-3"
    names = [*WRITTEN, "trainer_state.json"]
    for name in names[num_written:]:
        if name != names[num_written] or last == "whole":
            (newest / name).unlink()
        else:
            cut(newest / name)
    with caplog.at_level(logging.WARNING):
        assert last_complete_checkpoint(run) == str(run / "checkpoint-2")
    assert f"Skipping the checkpoint {newest}: " in caplog.text
    assert "trainer_state.json" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("damage", [Path.unlink, cut, lambda file: file.write_bytes(b"")])
def test_a_file_that_resuming_reads_must_be_there_and_whole(run, caplog, name, damage):
    """As when an older checkpoint was being deleted."""
    damage(run / "checkpoint-3" / name)
    with caplog.at_level(logging.WARNING):
        assert last_complete_checkpoint(run) == str(run / "checkpoint-2")
    assert "checkpoint-3: " in caplog.text


@pytest.mark.parametrize("fields", [{6: b"\xf8\x00"}, {8: b"\x00\x08", 46: b"\xf4\x28"}], ids=["version", "name"])
def test_an_archive_whose_table_of_contents_is_garbage_is_skipped(run, fields):
    """A version that nothing can read, and a name said to be UTF-8 that is not."""
    file = run / "checkpoint-3" / "optimizer.pt"
    content = bytearray(file.read_bytes())
    entry = content.index(b"PK\x01\x02")
    for offset, garbage in fields.items():
        content[entry + offset : entry + offset + len(garbage)] = garbage
    file.write_bytes(content)
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2")


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_a_file_cut_anywhere_is_found_out(run, name):
    file = run / "checkpoint-3" / name
    content = file.read_bytes()
    for size in {*range(0, len(content), max(1, len(content) // 40)), *range(len(content) - 22, len(content))}:
        file.write_bytes(content[:size])
        assert last_complete_checkpoint(run) == str(run / "checkpoint-2"), size


@pytest.mark.parametrize("content", ["", "{", "[]", '{"global_step": 2}', "\xff", "[" * 100_000])
def test_a_state_that_cannot_be_read_or_is_of_another_step_does_not_count(run, caplog, content):
    (run / "checkpoint-3" / "trainer_state.json").write_bytes(content.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert last_complete_checkpoint(run) == str(run / "checkpoint-2")
    assert "trainer_state.json" in caplog.text


def test_a_checkpoint_of_the_weights_only_is_skipped(run, caplog):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (run / "checkpoint-3" / name).unlink()
    with caplog.at_level(logging.WARNING):
        assert last_complete_checkpoint(run) == str(run / "checkpoint-2")
    assert "it holds the weights only" in caplog.text


def test_all_parts_of_divided_weights_must_be_there(run):
    newest = run / "checkpoint-3"
    (newest / "model.safetensors").rename(newest / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (newest / "model.safetensors.index.json").write_text(json.dumps(index))
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2")
    shutil.copy(newest / "model-00001-of-00002.safetensors", newest / "model-00002-of-00002.safetensors")
    assert last_complete_checkpoint(run) == str(newest)


def test_random_states_of_all_processes_but_the_last_are_missed(run, caplog):
    newest = run / "checkpoint-3"
    for number in (0, 2):
        shutil.copy(newest / "rng_state.pth", newest / f"rng_state_{number}.pth")
    (newest / "rng_state.pth").unlink()
    with caplog.at_level(logging.WARNING):
        assert last_complete_checkpoint(run) == str(run / "checkpoint-2")
    assert "random states of process 1 are missing" in caplog.text
    shutil.copy(newest / "rng_state_0.pth", newest / "rng_state_1.pth")
    assert last_complete_checkpoint(run) == str(newest)


def test_nothing_is_unpickled(run):
    """A file with the right frame and anything inside is looked at from outside only."""
    with zipfile.ZipFile(run / "checkpoint-3" / "optimizer.pt", "w") as file:
        file.writestr("archive/data.pkl", b"cos\nabort\n(tR.")
    assert last_complete_checkpoint(run) == str(run / "checkpoint-3")


def test_resuming_goes_on_from_the_last_complete_checkpoint_to_the_same_weights(run, caplog):
    whole = weights(run / "checkpoint-3")
    cut(run / "checkpoint-3" / "optimizer.pt")
    (run / "checkpoint-3" / "trainer_state.json").unlink()
    trainer = make_trainer(run)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert "Skipping the checkpoint" in caplog.text
    assert trainer.state.log_history[-1]["step"] == 3
    assert weights(run / "checkpoint-3") == whole
    assert last_complete_checkpoint(run) == str(run / "checkpoint-3")


def test_a_run_without_any_checkpoint_starts_from_the_beginning(tmp_path, finished, caplog):
    trainer = make_trainer(tmp_path / "new")
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert "no checkpoint" in caplog.text and "starts from the beginning" in caplog.text
    assert weights(tmp_path / "new" / "checkpoint-3") == weights(finished / "checkpoint-3")


def test_a_run_with_damaged_checkpoints_only_is_an_error_that_says_what_to_do(run):
    for step in (1, 2, 3):
        (run / f"checkpoint-{step}" / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="None of the 3 checkpoints .* Leave `resume_from_checkpoint` out to start"):
        make_trainer(run).train(resume_from_checkpoint=True)


def test_a_checkpoint_written_over_an_older_one_is_never_a_mixture_of_both(run, monkeypatch):
    """The older run's `trainer_state.json` would vouch for the newer run's weights."""
    trainer = make_trainer(run, max_steps=2, seed=7)

    def killed(output_dir):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert weights(run / "checkpoint-1") != weights(run / "checkpoint-2")
    assert last_complete_checkpoint(run) == str(run / "checkpoint-3")  # of the older run, and whole
    shutil.rmtree(run / "checkpoint-3")
    shutil.rmtree(run / "checkpoint-2")
    assert last_complete_checkpoint(run) is None


def test_a_named_checkpoint_is_taken_as_it_is(run):
    trainer = make_trainer(run)
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-1"))
    assert [entry["step"] for entry in trainer.state.log_history][-1] == 3


def test_a_folder_that_does_not_exist_has_no_checkpoint(tmp_path):
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.slow
def test_a_run_killed_while_it_writes_a_checkpoint_ends_in_the_same_weights(tmp_path):
    """`kill -9` from outside; the benchmark does it at more points and with larger files."""
    script = Path(__file__).parents[1] / "benchmarks" / "bench_resume.py"
    options = ["--kills", "most of the optimizer", "--width", "128", "--num-blocks", "2", "--out", "report.json"]
    done = subprocess.run(
        [sys.executable, script, *options], cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    for method in ("sft", "grpo"):
        (run,) = report[method]["runs"]
        assert "trainer_state.json" not in run["share_written_when_killed"]
        assert (run["resumed_at"], run["same_weights"], run["same_strengths"]) == (2, True, True)
