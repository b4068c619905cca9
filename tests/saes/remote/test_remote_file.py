"""A file on the Hub is read in parts: the same values, few bytes, nothing twice, no answer believed unchecked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from sae_posttrain.saes import load_sae
from sae_posttrain.saes.remote import remote_file

F, D = 3000, 64  # 768 kB a matrix
FEATURES = [2000, 5, 6, 2999]
MATRIX_BYTES, ROW_BYTES = 4 * F * D, 4 * D


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


@pytest.fixture
def published(tmp_path, tensors):
    """Writes an SAE of a format; returns the repository's name and its folder."""

    def write(format: str) -> tuple[str, Path]:
        name = {"qwen_scope": "owner/SAE-Res-Tiny-W1K-L0_5", "saelens": "owner/saelens"}.get(
            format, "google/gemma-scope-2b-pt-res"
        )
        folder = tmp_path / name
        folder.mkdir(parents=True)
        if format == "qwen_scope":
            turned = {name: tensors[name].T.contiguous() for name in ("W_enc", "W_dec")}
            torch.save({**turned, "b_enc": tensors["b_enc"], "b_dec": tensors["b_dec"]}, folder / "layer2.sae.pt")
        elif format == "saelens":
            save_file({n: t for n, t in tensors.items() if n != "threshold"}, folder / "sae_weights.safetensors")
            config = {
                "architecture": "standard",
                "d_in": D,
                "d_sae": F,
                "metadata": {"hook_name": "blocks.2.hook_resid_post"},
            }
            (folder / "cfg.json").write_text(json.dumps(config))
        else:
            save = np.savez_compressed if format == "compressed" else np.savez
            (folder / "layer_2/width_3k/average_l0_7").mkdir(parents=True)
            save(folder / "layer_2/width_3k/average_l0_7/params.npz", **{n: t.numpy() for n, t in tensors.items()})
        return name, folder

    return write


@pytest.fixture
def qwen(hub, published) -> str:
    name, folder = published("qwen_scope")
    hub.push(name, folder)
    return name


def same(one, other) -> bool:
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(a is b if a is None or b is None else a.equal(b) for a, b in pairs)


@pytest.mark.parametrize("format", ["qwen_scope", "saelens", "stored", "compressed"])
def test_features_are_the_same_as_from_the_full_file(hub, published, format):
    name, folder = published(format)
    commit = hub.push(name, folder)
    remote = load_sae(name, block=2, features=FEATURES, directions=True)
    full = load_sae(folder, block=2, features=FEATURES)
    assert same(remote, full)
    assert (remote.source.repository, remote.source.revision) == (name, commit)
    assert remote.source.file == full.source.file
    assert remote.source.sha256() == full.source.sha256()
    assert hub.leaked == []  # the token stays with the Hub


@pytest.mark.parametrize(
    ("format", "directions", "most_bytes"),
    [
        ("qwen_scope", None, 80_000),  # rows of the encoder, biases, tables of contents
        ("qwen_scope", True, 80_000 + MATRIX_BYTES),  # directions are columns
        ("saelens", False, 80_000 + MATRIX_BYTES),  # the encoder's features are columns
        ("saelens", True, 80_000 + MATRIX_BYTES),
        ("stored", True, 120_000 + MATRIX_BYTES),
    ],
)
def test_only_what_is_needed_is_fetched(hub, published, format, directions, most_bytes):
    name, folder = published(format)
    hub.push(name, folder)
    sae = load_sae(name, block=2, features=FEATURES, directions=directions)
    assert (sae.W_dec is None) == (directions is None or directions is False)
    assert hub.content_bytes() < most_bytes < 2 * MATRIX_BYTES
    assert len(hub.content_requests()) < 12
    hub.forget()
    again = load_sae(name, block=2, features=FEATURES, directions=directions)
    assert hub.content_requests() == []
    assert same(sae, again)


def test_rows_are_fetched_exactly_and_neighbours_together(hub, qwen):
    load_sae(qwen, block=2, features=[100])
    hub.forget()
    load_sae(qwen, block=2, features=[2000])
    assert hub.content_bytes() == ROW_BYTES
    hub.forget()
    load_sae(qwen, block=2, features=[703, 700, 701, 710])  # 11 rows from the first to the last
    assert [request.num_bytes for request in hub.content_requests()] == [11 * ROW_BYTES]
    hub.forget()
    load_sae(qwen, block=2, features=[705, 700, 1500])
    assert hub.content_bytes() == ROW_BYTES


def test_one_more_direction_fetches_the_matrix_for_that_one_only(hub, qwen, published, monkeypatch):
    load_sae(qwen, block=2, features=[3, 4], directions=True)
    hub.forget()
    load_sae(qwen, block=2, features=[4, 3], directions=True)
    assert hub.content_requests() == []
    monkeypatch.setattr("sae_posttrain.saes.stored.tensor.REMOTE_CHUNK_BYTES", 100_000)
    more = load_sae(qwen, block=2, features=[4, 900, 3], directions=True)
    assert hub.content_bytes() == MATRIX_BYTES + ROW_BYTES
    assert len(hub.content_requests()) == 1 + 8  # the row; blocks of 8 of the 64 rows
    assert more.W_dec.equal(load_sae(qwen, block=2).W_dec[[4, 900, 3]])


def test_downloaded_file_is_read_from_this_machine(hub, qwen):
    load_sae(qwen, block=2)
    hub.forget()
    sae = load_sae(qwen, block=2, features=FEATURES)
    assert hub.content_requests() == []
    assert sae.W_dec is not None  # nothing to save
    assert sae.source.path.is_file()


def test_what_was_fetched_is_read_offline_and_the_rest_is_named(hub, qwen, monkeypatch):
    sae = load_sae(qwen, block=2, features=[5, 9], directions=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.forget()
    assert same(load_sae(qwen, block=2, features=[5, 9], directions=True), sae)
    assert same(load_sae(qwen, block=2, features=[9, 5]).to("cpu"), load_sae(qwen, block=2, features=[9, 5]))
    assert hub.requests == []
    for features, directions in (([5, 1000], None), ([5, 6], True)):
        with pytest.raises(
            FileNotFoundError, match=r"Offline mode is on, and the bytes \d+ to \d+ of owner/.* were not"
        ):
            load_sae(qwen, block=2, features=features, directions=directions)


@pytest.mark.parametrize(
    "damage", [lambda held: held[:-1], lambda held: held[:-1] + bytes([held[-1] ^ 1]), lambda held: b""]
)
def test_damaged_cache_is_fetched_again(hub, qwen, damage, monkeypatch):
    sae = load_sae(qwen, block=2, features=[5, 9], directions=True)
    for path in Path(constants.HF_ASSETS_CACHE).rglob("*-*"):
        if path.is_file():
            path.write_bytes(damage(path.read_bytes()))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="were not read before"):
        load_sae(qwen, block=2, features=[5, 9])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert same(load_sae(qwen, block=2, features=[5, 9], directions=True), sae)


def lie(change):
    """A change of the answers that carry content."""

    def change_content(path, answer):
        if path.startswith("/cdn/") and answer.status == 206:
            change(answer)

    return change_content


def whole_file(answer):
    answer.status = 200


def another_range(answer):
    answer.headers["Content-Range"] = "bytes 0-9/100"


def another_size(answer):
    answer.headers["Content-Range"] = answer.headers["Content-Range"].partition("/")[0] + "/77"


def no_range(answer):
    del answer.headers["Content-Range"]


def short_body(answer):
    answer.body = answer.body[:-1]


def long_body(answer):
    answer.body += b"x"


def other_content(answer):
    answer.headers["X-Linked-Etag"] = f'"{"e" * 64}"'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_range, "sent the range 'bytes 0-9/100' instead of"),
        (another_size, "/77' instead of"),
        (no_range, "sent the range '' instead of"),
        (short_body, r"sent \d+ bytes instead of"),
        (long_body, "sent more bytes than were asked for"),
        (other_content, f"sent content of SHA-256 {'e' * 64} instead of"),
    ],
)
def test_answers_that_do_not_fit_are_refused_and_not_kept(hub, qwen, change, message):
    hub.change = lie(change)
    with pytest.raises(ValueError, match=message):
        load_sae(qwen, block=2, features=FEATURES)
    hub.change = lambda path, answer: None
    sae = load_sae(qwen, block=2, features=FEATURES)  # nothing wrong stayed behind
    hub.change = lie(change)
    with pytest.raises(ValueError, match=message):
        load_sae(qwen, block=2, features=FEATURES, directions=True)
    hub.change = lambda path, answer: None
    directions = load_sae(qwen, block=2, features=FEATURES, directions=True)
    assert directions.W_enc.equal(sae.W_enc)
    assert directions.W_dec.equal(load_sae(qwen, block=2).W_dec[FEATURES])


def test_server_that_sends_no_parts_gives_the_whole_file_once(hub, qwen, published):
    hub.change = lie(whole_file)
    sae = load_sae(qwen, block=2, features=FEATURES)
    assert sae.source.path.is_file()
    assert same(sae, load_sae(qwen, block=2, features=FEATURES))
    assert sum(request.num_bytes > 2 * MATRIX_BYTES for request in hub.requests) == 1


def test_server_that_stops_to_send_parts_is_an_error_that_says_what_to_do(hub, qwen):
    load_sae(qwen, block=2, features=[5])
    hub.change = lie(whole_file)
    with pytest.raises(
        ValueError, match=r"does not send parts of files.*`hf download owner/SAE-Res-Tiny-W1K-L0_5 layer2"
    ):
        load_sae(qwen, block=2, features=[1000])


def broken_off(times: int):
    """Ends the connection in the middle of an answer, the first `times` times."""
    left = [times]

    def change(answer):
        if left[0] > 0:
            left[0] -= 1
            answer.headers |= {"Content-Length": str(len(answer.body)), "Connection": "close"}
            answer.body = answer.body[: len(answer.body) // 2]

    return change


def test_broken_connections_are_tried_again(hub, qwen, monkeypatch):
    waits = []
    monkeypatch.setattr(remote_file.time, "sleep", waits.append)
    hub.change = lie(broken_off(2))
    sae = load_sae(qwen, block=2, features=FEATURES)
    assert waits == [1, 2]
    hub.change = lie(broken_off(100))
    with pytest.raises(FileNotFoundError, match="the Hub cannot be reached"):
        load_sae(qwen, block=2, features=[1234])
    hub.change = lambda path, answer: None
    assert sae.W_enc.equal(load_sae(qwen, block=2).W_enc[:, FEATURES])


def test_file_that_changed_since_it_was_listed_is_refused(hub, qwen):
    load_sae(qwen, block=2, features=[5])
    hub.digests = dict.fromkeys(hub.digests, "e" * 64)
    with pytest.raises(ValueError, match="the file has changed"):
        load_sae(qwen, block=2, features=[1000])


def test_remote_bytes_are_counted_by_the_reader_as_by_a_file(hub, qwen):
    from sae_posttrain.saes.remote.hub_repository import find_repository

    repository = find_repository(qwen, None)
    file = repository.remote("layer2.sae.pt")
    with file.open("rb") as reader:
        assert reader.seek(0, 2) == file.size
        assert reader.read(10) == b""
        reader.seek(-4, 2)
        end = reader.read()
        reader.seek(0)
        begin = reader.read(4)
        with pytest.raises(OSError, match="seek before the beginning"):
            reader.seek(-1)
    content = repository.download("layer2.sae.pt").read_bytes()
    assert (begin, end) == (content[:4], content[-4:])
    assert (file.name, file.suffix) == ("layer2.sae.pt", ".pt")
