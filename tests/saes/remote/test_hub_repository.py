"""A Hub repository is read at one commit, each fact once, and from this machine in offline mode."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import cached_assets_path, constants, snapshot_download

from sae_posttrain.saes import load_sae
from sae_posttrain.saes.remote.hub_repository import find_repository

NAME = "owner/SAE-Res-Tiny-W1K-L0_5"


@pytest.fixture
def folder(tmp_path, weights) -> Path:
    """Two blocks in Qwen-Scope's layout, one of them in a folder `sub`, and a text."""
    folder = tmp_path / "pushed"
    (folder / "sub").mkdir(parents=True)
    stored = {"W_enc": weights["W_enc"].T.contiguous(), "W_dec": weights["W_dec"].T.contiguous()}
    for file in ("layer2.sae.pt", "sub/layer3.sae.pt"):
        torch.save({**stored, "b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}, folder / file)
    (folder / "README.md").write_text("an SAE")
    return folder


@pytest.fixture
def go_offline(monkeypatch):
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_branch_means_one_commit_for_everything_that_follows(hub, folder):
    first = hub.push(NAME, folder)
    repository = find_repository(NAME, None)
    (folder / "README.md").write_text("a better SAE")
    second = hub.push(NAME, folder)
    assert repository.commit == first != second
    assert repository.download("layer2.sae.pt").parent.name == first
    assert find_repository(NAME, "main").commit == second
    assert set(repository.files) == {"README.md", "layer2.sae.pt", "sub/layer3.sae.pt"}
    content = [request.path for request in hub.requests if "/resolve/" in request.path or "/tree/" in request.path]
    assert len(content) >= 3
    assert all(first in path or second in path for path in content)
    assert not any(first in path for path in content[content.index(content[-1]) :])


def test_commit_that_was_read_before_is_asked_for_no_more(hub, folder):
    commit = hub.push(NAME, folder)
    load_sae(NAME, block=2, features=[3], revision=commit)
    hub.forget()
    sae = load_sae(NAME, block=2, features=[3], revision=commit)
    assert hub.requests == []
    assert (sae.source.repository, sae.source.revision) == (NAME, commit)
    with pytest.raises(FileNotFoundError, match="no SAE of block 9"):
        load_sae(NAME, block=9, revision=commit)


def test_what_was_read_before_is_read_offline(hub, folder, go_offline):
    commit = hub.push(NAME, folder, branch="v1")
    some = load_sae(NAME, block=2, features=[3], revision="v1")
    load_sae(f"{NAME}/sub", block=3, revision="v1")
    hub.close()
    go_offline()
    again = load_sae(NAME, block=2, features=[3], revision="v1")
    assert again.W_enc.equal(some.W_enc)
    assert again.source == some.source
    assert again.source.sha256() == some.source.sha256()
    whole = load_sae(f"{NAME}/sub", block=3, revision=commit)
    assert (whole.num_features, whole.source.revision) == (16, commit)


def test_what_was_not_read_before_is_named_offline(hub, folder, go_offline):
    commit = hub.push(NAME, folder)
    load_sae(NAME, block=2, features=[3])
    go_offline()
    with pytest.raises(FileNotFoundError, match="layer2.sae.pt of owner/.* was not downloaded before.*HF_HUB_OFFLINE"):
        load_sae(NAME, block=2)
    with pytest.raises(FileNotFoundError, match=f"{NAME} at revision v1 is not on this machine.*HF_HUB_OFFLINE"):
        load_sae(NAME, block=2, revision="v1")
    with pytest.raises(FileNotFoundError, match="other/name is not on this machine"):
        load_sae("other/name", block=2)
    assert load_sae(NAME, block=2, features=[3], revision=commit).features == (3,)


def test_repository_in_the_hubs_own_cache_is_read_offline(hub, folder, go_offline):
    commit = hub.push(NAME, folder)
    snapshot_download(NAME)
    go_offline()
    repository = find_repository(NAME, None)
    assert repository.commit == commit
    assert set(repository.files) == {"README.md", "layer2.sae.pt", "sub/layer3.sae.pt"}
    assert repository.remote("layer2.sae.pt") is None
    assert load_sae(NAME, block=2).k == 5


def test_cache_that_cannot_be_written_is_read_all_the_same(hub, folder, monkeypatch, tmp_path):
    hub.push(NAME, folder)
    load_sae(NAME, block=2)
    (tmp_path / "no folder").touch()
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "no folder"))
    assert load_sae(NAME, block=2, features=[3]).features == (3,)
    with pytest.raises(ValueError, match="cannot be written .*HF_ASSETS_CACHE"):
        load_sae(f"{NAME}/sub", block=3, features=[3])


def test_what_is_kept_lies_where_the_hub_library_says(hub, folder):
    commit = hub.push(NAME, folder)
    find_repository(NAME, None)
    kept = cached_assets_path("sae_posttrain", NAME, commit, assets_dir=constants.HF_ASSETS_CACHE)
    assert [path.name for path in kept.iterdir()] == ["files.json"]


def test_damaged_listing_is_fetched_again(hub, folder):
    commit = hub.push(NAME, folder)
    before = find_repository(NAME, commit)
    listing = next(Path(constants.HF_ASSETS_CACHE).rglob("files.json"))
    for damaged in ("", "[]", '{"layer2.sae.pt": 3}', '{"layer2.sae.pt": [1, 2, 3]}', '{"layer'):
        listing.write_text(damaged)
        assert find_repository(NAME, commit) == before
    listing.write_text('{"layer2.sae.pt": [5, "../../../elsewhere"]}')
    assert find_repository(NAME, commit).remote("layer2.sae.pt") is None


def test_damaged_note_of_a_branch_counts_as_missing(hub, folder, go_offline):
    hub.push(NAME, folder)
    find_repository(NAME, None)
    note = next(path for path in Path(constants.HF_ASSETS_CACHE).rglob("refs/*"))
    go_offline()
    for damaged in (b"", b"../../..", b"\xff" * 40):
        note.write_bytes(damaged)
        with pytest.raises(FileNotFoundError, match="is not on this machine"):
            find_repository(NAME, None)


def test_names_that_climb_are_not_listed(hub, folder, tmp_path):
    hub.push(NAME, folder)
    names = ["../layer3.sae.pt", "a/../../layer3.sae.pt", "/layer3.sae.pt", "..", "a\\layer3.sae.pt", "a..b/..c"]
    listed = [{"type": "file", "path": name, "size": 5, "oid": "0" * 40} for name in names]

    def change(path, answer):
        if "/tree/" in path:
            answer.body = json.dumps(listed).encode()

    hub.change = change
    assert list(find_repository(NAME, None).files) == ["a..b/..c"]


def test_gated_repository_says_what_to_do(hub, folder):
    hub.push(NAME, folder)
    hub.gated.add(NAME)
    with pytest.raises(
        FileNotFoundError, match=r"is gated.*hf auth login.*HF_TOKEN.*huggingface.co/owner/SAE-Res-Tiny"
    ):
        load_sae(NAME, block=2)


def test_repository_that_becomes_gated_says_so_at_the_first_file(hub, folder):
    hub.push(NAME, folder)
    repository = find_repository(NAME, None)
    hub.gated.add(NAME)
    with pytest.raises(FileNotFoundError, match=r"layer2.sae.pt cannot be downloaded.*is gated"):
        repository.download("layer2.sae.pt")
    with pytest.raises(FileNotFoundError, match=r"layer2.sae.pt .* cannot be read.*is gated"):
        repository.remote("layer2.sae.pt").read(0, 8)


def test_unknown_repository_and_revision_are_told_apart(hub, folder):
    hub.push(NAME, folder)
    with pytest.raises(FileNotFoundError, match=r"no repository no/such, or it is private.*HF_TOKEN"):
        load_sae("no/such", block=2)
    for revision in ("v9", "9" * 40):
        with pytest.raises(FileNotFoundError, match=f"at revision {revision}: {NAME} has no such revision"):
            load_sae(NAME, block=2, revision=revision)
    with pytest.raises(FileNotFoundError, match="cannot be read"):
        load_sae("a--b/c..d", block=2)


def test_other_answers_of_the_hub_give_one_message(hub, folder, monkeypatch):
    hub.push(NAME, folder)

    def answer(status, body):
        def change(path, answer):
            answer.status, answer.headers, answer.body = status, {}, body

        hub.change = change

    for status, body, message in (
        (403, b"", "the Hub answered 403.*HF_TOKEN"),
        (418, b"", "the Hub answered 418"),
        (200, b"<html>log in to the airport</html>", "cannot be read"),
        (200, b'{"id": "x", "sha": "../../x"}', "does not name its commit"),
        (200, b'{"id": "x"}', "does not name its commit"),
    ):
        answer(status, body)
        with pytest.raises(FileNotFoundError, match=message):
            load_sae(NAME, block=2)


def test_hub_that_cannot_be_reached_is_an_error_with_a_way_out(hub, folder):
    hub.push(NAME, folder)
    hub.close()
    with pytest.raises(FileNotFoundError, match="the Hub cannot be reached.*HF_HUB_OFFLINE=1"):
        load_sae(NAME, block=2)
