import json
import logging
from collections import Counter

import numpy as np
import pytest
import torch

from sae_posttrain import TextOptions
from sae_posttrain.analysis import TextActivations, read_activations
from sae_posttrain.analysis import reading as module
from sae_posttrain.saes.frozen import FrozenSAE

TEXTS = [{"text": text, "lang": lang} for text, lang in [("hello world", "en"), ("a", "en"), ("ñandú y más", "es")]]
CHAT = [{"messages": [{"role": "user", "content": "Why so?"}, {"role": "assistant", "content": f"Because {n}."}]}
        for n in ("of it", "it is so", "not")]  # fmt: skip
POOLS = {
    "max": lambda acts: acts.clamp(min=0).amax(dim=0),
    "mean": lambda acts: acts.mean(dim=0),
    "count": lambda acts: (acts > 0).sum(dim=0).float(),
    "last": lambda acts: acts[-1],
}


@torch.no_grad()
def token_activations(model, sae: FrozenSAE, ids: list[int], counted: slice) -> torch.Tensor:
    """What the definition says, for one text read by itself."""
    written = []
    with model.model.layers[sae.block].register_forward_hook(lambda _m, _a, output: written.append(output)):
        model(input_ids=torch.tensor([ids]))
    return sae.encode(written[0][0, counted])


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ["topk", "abstopk", "groupmax", "jumprelu", "relu"])
def test_rows_are_what_the_saes_authors_compute_pooled_over_each_text(
    make_model, make_sae, tokenizer, activation, pool
):
    model = make_model()
    saes = [make_sae(0, activation), make_sae(1, activation)]
    read = read_activations(model, saes, TEXTS, pool=pool, tokenizer=tokenizer, residuals=True)
    assert read.places == ((0, "resid_post"), (1, "resid_post"))
    assert read.groups == ("en", "en", "es")
    for sae in saes:
        rows = read.at(sae.block)
        assert rows.dtype == np.float32 and rows.has_sorted_indices and (rows.data != 0).all()
        for number, row in enumerate(TEXTS):
            ids = tokenizer(row["text"])["input_ids"]
            assert read.num_tokens[number] == len(ids) - 1
            acts = token_activations(model, sae, ids, slice(1, None))
            wanted = POOLS[pool](acts) if len(acts) else torch.zeros(sae.num_features)
            np.testing.assert_allclose(rows[[number]].toarray()[0], wanted.numpy(), rtol=1e-4, atol=1e-5)


def counted_text(model, sae, tokenizer, positions: str) -> list[str]:
    """The text of the tokens that are read, of each conversation."""
    seen = []
    original = module._read_batch

    def spy(network, saes, batch, *more):
        seen.extend(tokenizer.decode(ids[mask]) for ids, mask in zip(batch.input_ids, batch.counted))
        return original(network, saes, batch, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_read_batch", spy)
        read_activations(model, sae, CHAT, tokenizer=tokenizer, positions=positions, pool="last")
    return sorted(seen)


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        ("response", ["Because it is so.", "Because not.", "Because of it."]),
        ("prompt", ["Why so?"] * 3),
        ("all", ["Why so?Because it is so.", "Why so?Because not.", "Why so?Because of it."]),
        ("last", ["."] * 3),
    ],
)
def test_positions_say_which_tokens_of_a_conversation_are_read(make_model, make_sae, tokenizer, positions, wanted):
    assert counted_text(make_model(), make_sae(), tokenizer, positions) == wanted


def test_one_forward_pass_serves_all_saes_and_rows_keep_their_order(make_model, make_sae, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "_TEXTS_SORTED", 3)  # several windows
    rows = [{"text": "x" * length} for length in (9, 2, 7, 5, 30, 3, 12)]
    passes = []
    original = module.read_sites
    monkeypatch.setattr(module, "read_sites", lambda *given, **more: passes.append(given) or original(*given, **more))
    options = TextOptions(batch_size=2)
    read = read_activations(
        make_model(), [make_sae(0), make_sae(1)], rows, tokenizer=tokenizer, text_options=options, pool="count"
    )
    assert len(passes) == 5  # windows of 3, 3 and 1 texts in batches of 2
    assert read.num_tokens.tolist() == [8, 1, 6, 4, 29, 2, 11]
    assert (read.at(0).sum(axis=1) <= 4 * read.num_tokens).all()  # k = 4


def test_processes_that_share_the_texts_return_what_one_does(make_model, make_sae, tokenizer, monkeypatch):
    rows = [{"text": "y" * (3 + i)} for i in range(5)]
    alone = read_activations(make_model(), make_sae(), rows, tokenizer=tokenizer)

    class Process:
        num_processes, is_main_process = 2, False

        def __init__(self, index=0):
            self.process_index = index
            self.device = torch.device("cpu")

        def wait_for_everyone(self):
            pass

    kept: list[list] = [[], []]
    for index in (0, 1):  # each process by itself, to see what it would send
        monkeypatch.setattr(module, "PartialState", lambda index=index: Process(index))
        monkeypatch.setattr(module, "gather_object", lambda part, index=index: kept[index].extend(part) or part)
        share = read_activations(make_model(), make_sae(), rows, tokenizer=tokenizer)
        assert len(share) == (3, 2)[index]
    monkeypatch.setattr(module, "PartialState", Process)
    calls = Counter()

    def gather(part):
        calls["n"] += 1
        return [sent[calls["n"] - 1] for sent in kept]

    monkeypatch.setattr(module, "gather_object", gather)
    together = read_activations(make_model(), make_sae(), rows, tokenizer=tokenizer)
    np.testing.assert_array_equal(together.at().toarray(), alone.at().toarray())
    assert together.num_tokens.tolist() == alone.num_tokens.tolist() and together.keys == alone.keys


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def model_folder(make_model, tokenizer, tmp_path):
    folder = tmp_path / "tiny"
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_cache_is_read_back_without_the_model(model_folder, make_sae, tmp_path, monkeypatch):
    texts, cache = write_rows(tmp_path / "texts.jsonl", TEXTS), tmp_path / "kept" / "read.safetensors"
    first = read_activations(model_folder, make_sae(), texts, cache=cache, residuals=True)
    monkeypatch.setattr(module, "load_model_and_tokenizer", lambda *_: pytest.fail("the model was loaded"))
    again = read_activations(model_folder, make_sae(), texts, cache=cache, residuals=True)
    loaded = TextActivations.load(cache)
    for other in (again, loaded):
        np.testing.assert_array_equal(other.at().toarray(), first.at().toarray())
        np.testing.assert_array_equal(other.residuals[1, "resid_post"], first.residuals[1, "resid_post"])
        assert (other.groups, other.keys, other.pool, other.origin) == (
            first.groups,
            first.keys,
            first.pool,
            json.loads(json.dumps(first.origin)),
        )
    assert [file.name for file in cache.parent.iterdir()] == ["read.safetensors"]


def test_cache_of_something_else_is_refused_and_left_alone(make_model, make_sae, tokenizer, tmp_path):
    cache = tmp_path / "read.safetensors"
    model = make_model()

    def read(saes=None, texts=TEXTS, network=model, **settings):
        return read_activations(network, saes or make_sae(), texts, cache=cache, tokenizer=tokenizer, **settings)

    read()
    kept = cache.read_bytes()
    with pytest.raises(ValueError, match="other texts: 3 texts with the hash .*these are 2 .*Give another `cache`"):
        read(texts=TEXTS[:2])
    with pytest.raises(ValueError, match="read otherwise: pool was 'max', is 'mean'"):
        read(pool="mean")
    with pytest.raises(ValueError, match="saes was"):
        read(saes=make_sae(0))
    with pytest.raises(ValueError, match="hash of the model's weights was"):
        read(network=make_model(seed=1))
    assert cache.read_bytes() == kept
    cache.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match="damaged"):
        read()


def test_interrupted_write_leaves_no_file(make_model, make_sae, tokenizer, tmp_path, monkeypatch):
    def save_half(_tensors, path, **_kwargs):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_posttrain.analysis.activation_file.save_file", save_half)
    with pytest.raises(KeyboardInterrupt):
        read_activations(make_model(), make_sae(), TEXTS, tokenizer=tokenizer, cache=tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_bad_input_is_told_in_one_message(make_model, make_sae, tokenizer, tmp_path):
    model = make_model()

    def refused(message, texts=TEXTS, saes=None, **settings):
        with pytest.raises(ValueError, match=message):
            read_activations(model, saes or make_sae(), texts, tokenizer=tokenizer, **settings)

    refused("There are no texts", texts=[])
    refused("Row 2 of the texts: `text` is an empty text", texts=[TEXTS[0], {"text": " "}])
    refused("`pool` must be one of 'max', 'mean'", pool="median")
    refused("`positions` must be one of", positions="answer")
    refused("Row 1 of the texts has no prompt to read", positions="prompt")
    refused("ends in .safetensors", cache=tmp_path / "a.npz")
    refused("compares all features", saes=make_sae(features=tuple(range(24))))
    refused("was it trained on this model", saes=_of_width(make_sae(activation="relu"), 16))
    refused("model has blocks 0 to 1", saes=make_sae(block=5))
    long = [{"text": "z" * 300}]
    refused("300 tokens within `max_length`, and the model's window has 256", long, text_options=TextOptions())


def _of_width(sae, width):
    return FrozenSAE(sae.W_enc[:width], sae.b_enc, sae.W_dec[:, :width], sae.b_dec[:width], "relu", 1, sae.source)


def test_texts_that_are_cut_or_empty_are_said(make_model, make_sae, tokenizer, caplog):
    rows = [{"text": "a long text"}, {"text": "q"}]
    with caplog.at_level(logging.WARNING):
        read = read_activations(
            make_model(), make_sae(), rows, tokenizer=tokenizer, text_options=TextOptions(max_length=4)
        )
    assert "1 of 2 texts are longer than `max_length`" in caplog.text
    assert "1 of 2 texts have no token that counts" in caplog.text
    assert read.num_tokens.tolist() == [3, 0] and read.at()[[1]].nnz == 0


def test_model_keeps_its_mode_and_no_hook(make_model, make_sae, tokenizer):
    model = make_model().train()
    read_activations(model, make_sae(), TEXTS, tokenizer=tokenizer)
    assert model.training and not any(len(each._forward_hooks) for each in model.modules())
