"""The index of a repository of feature sets: written, read from a folder and the Hub, and checked."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from sae_posttrain import FeatureSet
from sae_posttrain.cli import main
from sae_posttrain.features.set.calibrated_for import calibrated_features
from sae_posttrain.features.set.feature_index import format_index, index_folder, list_features, write_index


@pytest.fixture
def folder(make_features, tmp_path):
    loop = make_features(blocks=(1,), base_model="owner/Small-1B", targets=()).rename({"1.3": "loop", "1.13": "loop"})
    note = {"calibration": {"strength": 1.5, "features": calibrated_features(loop)}}
    replace(loop, notes=note).save(tmp_path / "loop.safetensors")
    make_features().save(tmp_path / "switch" / "zh.safetensors")
    (tmp_path / "switch" / "zh.html").write_text("a dashboard")
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    return tmp_path


def test_an_index_says_what_there_is_for_which_model_with_which_pages(folder, capsys):
    entries = index_folder(folder)
    assert [entry.file for entry in entries] == ["loop.safetensors", "switch/zh.safetensors"]
    assert entries[0].names == ("loop",) and entries[0].strength == 1.5 and entries[0].num_features == 2
    assert entries[1].pages == ("switch/zh.html",) and entries[1].target_groups == ("zh",)
    assert main(["features", "index", str(folder)]) == 0
    assert list_features(folder) == entries
    (folder / "loop.safetensors").unlink()  # a reader needs the index alone
    capsys.readouterr()
    assert main(["features", "list", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed == format_index(entries) + "\n"
    assert "owner/Small-1B" in printed and "switch/zh.html" in printed
    assert main(["features", "list", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["blocks"] == [0, 1]


def test_a_set_itself_is_described(folder, capsys):
    assert main(["features", "list", str(folder / "loop.safetensors")]) == 0
    assert "owner/Small-1B" in capsys.readouterr().out
    assert main(["features", "list", str(folder / "model.safetensors")]) == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert main(["features", "list", ""]) == 2
    assert "got no name" in capsys.readouterr().err


def test_a_repository_in_the_cache_is_listed_and_read_without_the_hub(folder, monkeypatch, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    write_index(folder)
    repository = cache / "models--owner--features"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("a" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(cache))
    entries = list_features("owner/features")
    assert entries == list_features(folder)
    assert FeatureSet.from_pretrained(f"owner/features/{entries[1].file}").names == ("0.3", "0.13", "1.23", "1.33")
    with pytest.raises(FileNotFoundError, match="No feature set at owner/features/none.safetensors"):
        FeatureSet.from_pretrained("owner/features/none.safetensors")


def test_a_repository_of_the_hub_is_listed_by_its_index(folder, monkeypatch):
    path = write_index(folder)
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *what, **_options: asked.append(what) or str(path))
    assert [entry.file for entry in list_features("owner/features")] == ["loop.safetensors", "switch/zh.safetensors"]
    assert asked == [("owner/features", "features.json")]


def test_an_index_is_replaced_only_when_asked(folder, capsys):
    write_index(folder)
    assert main(["features", "index", str(folder)]) == 2
    assert "exists already. To replace it, allow it: --overwrite" in capsys.readouterr().err
    assert main(["features", "index", str(folder), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is no index of feature sets: it holds no list `features`"),
        ("{", "is not JSON"),
        ('{"version": 9, "features": []}', "is an index of version 9; this release reads 1"),
        ('{"version": 1, "features": [3]}', "Entry 1 of .* must be an object, got int"),
        ('{"version": 1, "features": [{"names": "x"}]}', "`names` must be a list of str"),
        (
            '{"version": 1, "features": [{"names": [], "blocks": [], "file": "x", "base_model": 3}]}',
            "`base_model` must be of the type str",
        ),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, content, message):
    (tmp_path / "features.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        list_features(tmp_path)


def test_what_is_not_there_is_said(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="There is no feature set in"):
        list_features(tmp_path)
    with pytest.raises(FileNotFoundError, match="named owner/name"):
        list_features(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="No index of feature sets at owner/nothing"):
        list_features("owner/nothing")
    assert main(["features", "list", "owner/nothing", "--out", "x.safetensors"]) == 2
    assert "OLD=NEW and --out belong to rename" in capsys.readouterr().err


def test_features_get_other_names_on_the_command_line(folder, tmp_path, capsys):
    zh, out = str(folder / "switch" / "zh.safetensors"), tmp_path / "named.safetensors"
    assert main(["features", "rename", zh, "0.3=chinese", "1.33=hanzi", "--out", str(out)]) == 0
    assert FeatureSet.load(out).names == ("chinese", "0.13", "1.23", "hanzi")
    assert main(["features", "rename", zh, "chinese", "--out", str(out), "--overwrite"]) == 2
    assert "Names are given as OLD=NEW, such as 14.4245=loop; got 'chinese'" in capsys.readouterr().err
    assert main(["features", "rename", zh, "0.4=x", "--out", str(out), "--overwrite"]) == 2
    assert "Unknown feature '0.4'" in capsys.readouterr().err
