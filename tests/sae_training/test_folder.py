import json

import pytest

from sae_posttrain.sae_training.folder import add_to_report, folder_beside, publish, read_report, require_new

NAME = "blocks.2.hook_resid_post"


def write_sae(folder):
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text("{}")


def test_saes_of_a_later_training_join_those_that_are_there(tmp_path):
    out = tmp_path / "new" / "saes"
    for number in (2, 4):
        name = f"blocks.{number}.hook_resid_post"
        with folder_beside(out) as unfinished:
            write_sae(unfinished / name)
            assert publish(unfinished, out, [name]) == [out / name]
        add_to_report(out, {name: {"seconds": number}})
    assert sorted(path.name for path in out.iterdir()) == [NAME, "blocks.4.hook_resid_post", "training.json"]
    assert {name: entry["seconds"] for name, entry in read_report(out).items()} == {
        NAME: 2,
        "blocks.4.hook_resid_post": 4,
    }
    assert [path.name for path in out.parent.iterdir()] == ["saes"]


def test_a_training_that_fails_leaves_nothing(tmp_path):
    def fail():
        with folder_beside(tmp_path / "saes") as unfinished:
            write_sae(unfinished / NAME)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert not list(tmp_path.iterdir())


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
