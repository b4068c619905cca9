import gzip
import hashlib
import importlib.util
import json
import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_posttrain import load_sae
from sae_posttrain.hooks.record import record_blocks

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "help" / "make_model.py"
WORDS = {
    "en": "open save cell table page font style chart print menu row column text line image".split(),
    "ko": "열기 저장 셀 표 쪽 글꼴 모양 도표 인쇄 차림 행 열 글 줄 그림".split(),
}
TINY = (
    "--vocab-size 300 --width 32 --blocks 2 --heads 2 --kv-heads 1 --head-dim 16 --intermediate 48 --steps 6 "
    "--batch-size 4 --length 32 --held-out 0.2 --sae-features 64 --sae-k 4 --sae-tokens 1000 --sae-test-tokens 200 "
    "--sae-epochs 12 --sae-batch-size 64 --sae-dead-after 500 --device cpu"
).split()


def load_script():
    spec = importlib.util.spec_from_file_location("make_model", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def write_pages(folder: Path, held_out_text: str = "") -> Path:
    """Forty pages in two languages; the text of the held-out ones can be replaced."""
    folder.mkdir()
    generator = random.Random(0)
    for lang, words in WORDS.items():
        lines = []
        for number in range(40):
            page = {"id": f"page/{number}", "lang": lang, "title": " ".join(generator.sample(words, 2))}
            page["text"] = " ".join(generator.choices(words, k=30))
            if held_out_text and script.is_held_out(page["id"], 0.2):
                page |= {"title": held_out_text, "text": held_out_text}
            lines.append(json.dumps(page, ensure_ascii=False) + "\n")
        with gzip.open(folder / f"{lang}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(lines)
    return folder


def run(data: Path, out: Path, *options: str) -> dict:
    return script.main(["--data", str(data), "--out", str(out), *TINY, *options])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict]:
    """The folder that a run wrote, and the report that it returned."""
    root = tmp_path_factory.mktemp("made")
    return root / "model", run(write_pages(root / "pages"), root / "model")


def test_model_and_tokenizer_load_and_speak_the_chat_template(made):
    out, _ = made
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(tokenizer) == model.config.vocab_size == 300
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    assert (model.generation_config.pad_token_id, model.generation_config.eos_token_id) == (0, 2)
    assert tokenizer.decode(tokenizer("셀 cell")["input_ids"]) == "셀 cell"

    chat = [{"role": "user", "content": "cell"}, {"role": "assistant", "content": "셀"}]
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    answer = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"]) if mask]
    assert tokenizer.decode(answer) == "셀<|im_end|>"
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encoded["input_ids"][: len(prompt)] == prompt


def test_saes_load_and_explain_what_their_block_writes(made):
    out, report = made
    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad(), record_blocks(model, [0, 1]) as outputs:
        model(torch.arange(3, 35)[None])
    for block in (0, 1):
        sae = load_sae(out / "sae", block=block, k=4)
        assert sae.pre_activations(outputs[block][0]).shape == (1, 32, 64)
        assert ((sae.encode(outputs[block][0]) != 0).sum(dim=-1) == 4).all()
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(64))
        measured = report["saes"][block]
        assert 0 < measured["fraction_of_variance_unexplained"] < 0.9  # 1 is what the mean alone leaves
        assert 0 <= measured["dead_features"] < 1


def test_report_says_how_the_model_was_made(made):
    out, report = made
    assert json.loads((out / "training.json").read_text("utf-8")) == report
    assert report["settings"]["steps"] == 6
    assert report["settings"]["repeat"] == {"en": 1, "ko": 2}
    assert report["model"]["num_tokens"] == 6 * 4 * 32
    assert {"torch", "transformers", "tokenizers"} < set(report["versions"])
    assert "seconds" in report
    assert sorted(path.name for path in out.parent.iterdir()) == ["model", "pages"]  # nothing temporary is left


def test_same_seed_makes_the_same_weights_whatever_the_held_out_pages_say(made, tmp_path):
    out, report = made
    held_out = json.loads((out / "held_out_ids.json").read_text("utf-8"))
    assert held_out == sorted(f"page/{n}" for n in range(40) if script.is_held_out(f"page/{n}", 0.2))
    assert report["data"]["num_training_pages"] == {"en": 40 - len(held_out), "ko": 40 - len(held_out)}

    again = tmp_path / "again"
    report_again = run(write_pages(tmp_path / "pages", held_out_text="Совсем другой текст. " * 20), again)
    assert report_again["data"]["sha256"] != report["data"]["sha256"]
    assert (again / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()
    weights, weights_again = load_file(out / "model.safetensors"), load_file(again / "model.safetensors")
    assert weights.keys() == weights_again.keys()
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    for block in (0, 1):
        sae, sae_again = (torch.load(f / "sae" / f"layer{block}.sae.pt", weights_only=True) for f in (out, again))
        assert all(torch.equal(sae[name], sae_again[name]) for name in ("W_enc", "W_dec", "b_enc", "b_dec"))


def test_page_is_held_out_by_its_id_alone():
    digest = hashlib.sha256(b"page/7").digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    assert script.is_held_out("page/7", share + 1e-6) and not script.is_held_out("page/7", share - 1e-6)
    assert not script.is_held_out("page/7", 0)


def test_full_out_is_refused_and_left_alone(tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not empty"):
        run(write_pages(tmp_path / "pages"), out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert (out / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vocab-size", "200"], "all bytes and the special tokens need 259"),
        (["--vocab-size", "5000"], "Too little text for `--vocab-size 5000`"),
        (["--length", "100000"], "Too little text for `--length 100000`"),
        (["--sae-tokens", "100000"], "Too little text for `--sae-tokens 100000`"),
        (["--sae-k", "65"], "an SAE has only 64 features"),
        (["--repeat", "zh=2"], "names 'zh'; the data has en, ko"),
        (["--repeat", "ko"], "entries such as zh=2, got 'ko'"),
        (["--held-out", "1"], "share from 0 to below 1, got 1.0"),
        (["--heads", "3", "--kv-heads", "2"], "multiple of `--kv-heads`"),
    ],
)
def test_setting_that_cannot_work_is_an_error_and_leaves_nothing(tmp_path, options, message):
    data = write_pages(tmp_path / "pages")
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path / "model", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]


def test_data_that_cannot_be_read_is_an_error_that_says_where(tmp_path):
    data = tmp_path / "pages"
    with pytest.raises(ValueError, match="There is no folder"):
        run(data, tmp_path / "model")
    data.mkdir()
    with pytest.raises(ValueError, match="holds no `<lang>.jsonl`"):
        run(data, tmp_path / "model")
    row = {"id": "a", "lang": "en", "title": "t", "text": "x"}
    for wrong, message in [
        ({"id": "a", "lang": "en"}, "en.jsonl, line 2 lacks title, text; it has id, lang"),
        (row | {"text": None}, "line 2: text must be a string"),
        (row | {"lang": "ko"}, "has the language 'ko', its file is of 'en'"),
        ("not a page", "line 2 is not a JSON object"),
    ]:
        (data / "en.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(wrong) + "\n", "utf-8")
        with pytest.raises(ValueError, match=message):
            run(data, tmp_path / "model")
    (data / "en.jsonl.gz").touch()
    with pytest.raises(ValueError, match="holds both"):
        run(data, tmp_path / "model")


def test_each_epoch_of_packed_rows_holds_every_page_once():
    pages = [torch.full((size,), number, dtype=torch.int32) for number, size in enumerate([3, 4, 5, 8])]  # 20 tokens
    batches = script.packed_batches(pages, batch_size=2, length=3, seed=0)
    rows = torch.cat([next(batches).flatten() for _ in range(10)])  # 60 tokens: three epochs
    for epoch in rows.view(3, 20):
        assert torch.bincount(epoch).tolist() == [3, 4, 5, 8]
    assert not torch.equal(rows[:20], rows[20:40])


def test_learning_rate_rises_in_a_line_and_falls_to_zero():
    factors = [script.warm_up_then_cosine(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert factors[55] == pytest.approx(0.5)  # half of the way from step 10 to step 100
    assert 0 < factors[99] < 0.01


def test_dead_features_learn_from_what_the_others_leave():
    # One token x = (3, 0). Feature 0 reads it in full and writes 1 along the first axis: pre 1, error (2, 0).
    # Feature 1 is dead: pre = 3 · 0.1 = 0.3, it writes along the first axis too: (0.3, 0) of the error (2, 0).
    x = torch.tensor([[3.0, 0.0]])
    W_enc = torch.tensor([[1 / 3, 0.0], [0.1, 0.0]], requires_grad=True)
    W_dec = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    dead = torch.tensor([False, True])
    loss, active = script.topk_loss(x, W_enc, torch.zeros(2), W_dec, torch.zeros(2), 1, dead)
    assert active.tolist() == [[0]]
    assert math.isclose(loss.item(), 4 / 2 + 1.7**2 / 2 / 32, rel_tol=1e-6)
    loss.backward()
    assert W_enc.grad is not None and W_enc.grad[1, 0] < 0  # a step down the loss makes the dead feature stronger
