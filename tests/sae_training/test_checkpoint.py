import json
import logging
import os

import pytest

from sae_posttrain.sae_training import checkpoint
from sae_posttrain.sae_training.checkpoint import Checkpoints, checkpoint_path, is_trained, newest, read_record
from sae_posttrain.sae_training.processes import Processes

SETTINGS = {"k": 16, "blocks": [9]}


def open_checkpoints(out, save_every=10.0, **settings):
    return Checkpoints(out, {**SETTINGS, **settings}, save_every, Processes())


def put(text):
    return lambda folder: (folder / "state").write_text(text)


def test_the_last_checkpoint_is_kept_and_the_one_before_removed(tmp_path):
    checkpoints = open_checkpoints(tmp_path / "saes")
    assert checkpoints.newest() is None
    for step in (90, 100):
        checkpoints.save_step(step, {"seconds": 2.5}, put(f"after {step}"))
    found = open_checkpoints(tmp_path / "saes").newest()
    assert found == tmp_path / "saes.checkpoint" / "step-100"
    assert (found / "state").read_text() == "after 100"
    assert read_record(found) == {"settings": SETTINGS, "step": 100, "seconds": 2.5}
    assert [path.name for path in found.parent.iterdir()] == ["step-100"]
    checkpoints.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails", ["write", "fsync", "rename"])
def test_a_write_that_fails_leaves_the_older_checkpoint(tmp_path, monkeypatch, caplog, fails):
    checkpoints = open_checkpoints(tmp_path / "saes")
    checkpoints.save_step(90, {}, put("older"))

    def full(*_):
        raise OSError(28, "No space left on device")

    if fails != "write":
        monkeypatch.setattr(checkpoint.os, fails, full)
    with caplog.at_level(logging.WARNING):
        checkpoints.save_step(100, {}, full if fails == "write" else put("newer"))
    assert "No checkpoint could be written at step 100" in caplog.text
    assert "No space left on device" in caplog.text
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "saes.checkpoint").iterdir()] == ["step-90"]
    assert (open_checkpoints(tmp_path / "saes").newest() / "state").read_text() == "older"


@pytest.mark.parametrize("at", ["write", "rename", "removal"])
def test_a_process_killed_while_it_writes_leaves_a_whole_checkpoint(tmp_path, monkeypatch, at):
    out = tmp_path / "saes"
    open_checkpoints(out).save_step(90, {}, put("older"))
    child = os.fork()
    if child == 0:  # dies without any clean-up, as under SIGKILL
        if at == "write":
            open_checkpoints(out).save_step(100, {}, lambda folder: put("half")(folder) and os._exit(1))
        monkeypatch.setattr(
            checkpoint.os if at == "rename" else checkpoint.shutil,
            *{
                "rename": ("rename", lambda *_: os._exit(1)),
                "removal": ("rmtree", lambda path, **_: os._exit(1) if ".removed" in path.name else None),
            }[at],
        )
        open_checkpoints(out).save_step(100, {}, put("newer"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    found = open_checkpoints(out).newest()
    assert (found / "state").read_text() == ("newer" if at == "removal" else "older")
    open_checkpoints(out).save_step(110, {}, put("next"))  # what was left behind is not in the way
    assert [path.name for path in (tmp_path / "saes.checkpoint").iterdir()] == ["step-110"]


def test_a_training_with_other_settings_is_refused(tmp_path):
    open_checkpoints(tmp_path / "saes").save_step(90, {}, put(""))
    with pytest.raises(ValueError, match=r"other settings: k was 16, is 32\. Give the same .* `restart` to remove it"):
        open_checkpoints(tmp_path / "saes", k=32)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[1]", "{}", '{"settings": 1}', b"\xff\xfe\xff"])
def test_a_damaged_record_says_what_to_delete(tmp_path, content):
    open_checkpoints(tmp_path / "saes").save_step(90, {}, put(""))
    record = tmp_path / "saes.checkpoint" / "step-90" / "record.json"
    record.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="step-90 is damaged: .*Delete this folder and run the same command again"):
        open_checkpoints(tmp_path / "saes")


def test_trained_saes_come_before_any_step(tmp_path):
    out = tmp_path / "saes"
    checkpoints = open_checkpoints(out)
    checkpoints.save_step(90, {}, put(""))
    assert not is_trained(out)
    folder = checkpoints.save_trained({"seconds": 1.0}, put("weights"))
    assert (folder / "state").read_text() == "weights"
    assert is_trained(out)
    assert open_checkpoints(out).trained() == folder
    assert open_checkpoints(out).newest() is None


def test_trained_saes_that_cannot_be_written_are_an_error(tmp_path):
    def full(_folder):
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        open_checkpoints(tmp_path / "saes").save_trained({}, full)
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_due_by_the_clock(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    checkpoints, never = (open_checkpoints(tmp_path / "saes", save_every=minutes) for minutes in (10, 0))
    now[0] += 599
    assert not checkpoints.due()
    now[0] += 1
    assert checkpoints.due()
    assert not never.due()
    checkpoints.save_step(5, {}, put(""))
    assert not checkpoints.due()


def test_the_folder_lies_beside_the_output_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint_path(tmp_path / "saes") == tmp_path / "saes.checkpoint"
    for name in (".", "../" + tmp_path.name):
        assert checkpoint_path(type(tmp_path)(name)) == tmp_path.parent / (tmp_path.name + ".checkpoint")


def test_files_of_others_in_the_folder_are_no_checkpoint(tmp_path):
    path = tmp_path / "saes.checkpoint"
    for name in ("step-x", "step-12a", "notes", ".unfinished"):
        (path / name).mkdir(parents=True)
    assert newest(path) is None
    (path / "step-9").mkdir()
    (path / "step-10").mkdir()
    (path / "step-10" / "record.json").write_text(json.dumps({}))
    assert newest(path).name == "step-10"
