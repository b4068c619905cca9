import json

import pytest

from sae_posttrain.sae_training.folder import add_to_report, publish, read_report, require_new

NAME = "blocks.2.hook_resid_post"


def write_sae(folder):
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text("{}")


def test_saes_of_a_later_training_join_those_that_are_there(tmp_path):
    out, finished = tmp_path / "saes", tmp_path / "finished"
    for number in (2, 4):
        name = f"blocks.{number}.hook_resid_post"
        write_sae(finished / name)
        assert publish(finished, out, [name]) == [out / name]
        add_to_report(out, {name: {"seconds": number}})
    assert sorted(path.name for path in out.iterdir()) == [NAME, "blocks.4.hook_resid_post", "training.json"]
    assert {name: entry["seconds"] for name, entry in read_report(out).items()} == {
        NAME: 2,
        "blocks.4.hook_resid_post": 4,
    }
    assert not list(finished.iterdir())


def test_a_move_that_was_interrupted_goes_on(tmp_path):
    out, finished = tmp_path / "saes", tmp_path / "finished"
    write_sae(out / NAME)
    write_sae(finished / "blocks.4.hook_resid_post")
    publish(finished, out, [NAME, "blocks.4.hook_resid_post"])
    assert sorted(path.name for path in out.iterdir()) == [NAME, "blocks.4.hook_resid_post"]


def test_an_sae_that_is_there_is_refused(tmp_path):
    write_sae(tmp_path / NAME)
    require_new(tmp_path, ["blocks.4.hook_resid_post"])
    with pytest.raises(ValueError, match=f"holds {NAME} already"):
        require_new(tmp_path, ["blocks.4.hook_resid_post", NAME])


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file. Name a folder"):
        require_new(tmp_path / "file", [NAME])


@pytest.mark.parametrize("content", ["[1]", "{", json.dumps("x"), "[" * 100_000])
def test_a_report_of_something_else_is_refused_before_the_training(tmp_path, content):
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(ValueError, match="training.json is "):
        require_new(tmp_path, [NAME])
