"""The parts of the help-page experiment that its figures rest on."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

FOLDER = Path(__file__).parents[2] / "benchmarks" / "help"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pages_folder(tmp_path):
    for lang, num in (("en", 20), ("zh", 16), ("ko", 14)):
        rows = [{"id": f"page{i}", "lang": lang, "title": f"{lang} {i}", "text": f"text {i}"} for i in range(num)]
        (tmp_path / f"{lang}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_splits_share_no_page_in_any_language(pages_folder):
    pages = load("pages")
    loaded = pages.load_pages(pages_folder)
    splits = pages.split_ids(loaded, 3)
    ids = {split: {row["id"] for row in pages.rows_of(loaded, splits, split)} for split in ("train", "dev", "test")}
    assert len(ids["test"]) == len(ids["dev"]) == 3
    assert not ids["train"] & (ids["dev"] | ids["test"])
    assert not ids["dev"] & ids["test"]
    assert len(pages.rows_of(loaded, splits, "test")) == 9  # 3 pages in 3 languages
    with pytest.raises(ValueError, match="14 pages exist in every language, too few"):
        pages.split_ids(loaded, 4)


def test_prepared_files_are_what_the_recipe_reads(pages_folder, capsys):
    load("pages").main(["--data", str(pages_folder), "--out", str(pages_folder / "out"), "--held-out", "3"])
    rows = [json.loads(line) for line in (pages_folder / "out" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 50 - 2 * 9
    assert rows[0]["prompt"][0]["role"] == "user"
    assert rows[0]["completion"][0]["role"] == "assistant"
    assert (pages_folder / "out" / "texts.jsonl").exists()
    assert "test.jsonl: 9 rows" in capsys.readouterr().out


def test_nucleus_share_is_the_chance_of_sampling_the_tokens():
    held_out = load("held_out")
    probs = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.9, 0.06, 0.03, 0.01]])
    tokens = torch.tensor([False, True, False, True])
    # first row: 0.5, 0.2, 0.2 are kept (mass before the third is 0.7 < 0.8), the token 1 has 0.2 of 0.9
    # second row: 0.9 alone is kept
    assert held_out.nucleus_share(probs, tokens, 0.8).tolist() == pytest.approx([0.2 / 0.9, 0.0])


def test_held_out_loss_is_the_mean_over_answer_tokens(make_model, tokenizer):
    held_out = load("held_out")
    model = make_model().eval()
    example = {
        "lang": "en",
        "prompt": [{"role": "user", "content": "Open?"}],
        "completion": [{"role": "assistant", "content": "yes"}],
    }
    measures = held_out.measure_held_out(model, tokenizer, [example], max_length=64, top_p=0.8)
    text = "<|user|>Open?<|end|><|assistant|>yes<|end|>"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        log_probs = model(ids).logits[0].log_softmax(-1)
    start = len(tokenizer("<|user|>Open?<|end|><|assistant|>")["input_ids"])
    expected = -sum(log_probs[t - 1, ids[0, t]].item() for t in range(start, start + 3)) / 3  # y, e, s
    assert measures["loss"]["en"] == pytest.approx(expected, rel=1e-5)
    assert measures["han_probability"]["en"] == 0.0  # the byte tokenizer has no token that is a whole Han character


def test_every_arm_parses_and_every_list_names_arms(monkeypatch, tmp_path):
    from sae_posttrain import SASFTConfig

    definitions = yaml.safe_load((FOLDER / "arms.yaml").read_text(encoding="utf-8"))
    for arm in definitions["arms"].values():
        assert set(arm) <= {"find", "config"}
        SASFTConfig(str(tmp_path), use_cpu=True, bf16=False, **arm["config"])
    for names in definitions["lists"].values():
        assert set(names) <= set(definitions["arms"])


def test_results_are_complete_and_hold_no_path():
    for file in (FOLDER / "results").glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            result = json.loads(line)
            measured = {"greedy", "copying"} if "negative" in result else {"han_probability", "groups"}
            assert {"arm", "seed", "loss", "overall", "hardware", "versions"} | measured <= set(result)
            assert str(Path(sys.prefix)) not in line


@pytest.fixture
def in_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def test_every_repetition_arm_parses(in_benchmarks, tmp_path):
    from sae_posttrain import SteeredGRPOConfig

    definitions = yaml.safe_load((FOLDER / "repetition_arms.yaml").read_text(encoding="utf-8"))
    for arm in definitions["arms"].values():
        assert set(arm) <= {"negative", "config"}
        settings = {**definitions["common"], **arm.get("config", {})}
        args = SteeredGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)
        assert args.num_steered == (0 if arm["negative"] == "none" else 1)
    assert set(definitions["lists"]["final"]) <= set(definitions["arms"]) | {"before"}


def test_hand_made_loops_are_endless(in_benchmarks):
    import random
    from types import SimpleNamespace

    from negatives import HandMadeLoops

    from sae_posttrain import find_loop

    trainer = SimpleNamespace(eos_token_ids=[0], max_completion_length=160)
    periods = set()
    for seed in range(20):
        ids = HandMadeLoops._loop(trainer, [*range(1, 120), 0], random.Random(seed))
        loop = find_loop(ids, finished=False)
        assert len(ids) == 160 and loop.endless and loop.onset >= 10
        periods.add(loop.period)
    assert len(periods) >= 4


def test_the_likeliest_of_the_features_that_reach_the_target_is_taken(in_benchmarks):
    from repetition_features import likeliest

    from sae_posttrain.features.calibrate.calibration import Calibration, CalibrationRow

    def sweep(strength, loss):
        row = CalibrationRow(1.0, 10, 7, 0.7, 0.4, 0.9, 100.0, loss)
        return Calibration(strength, 0.6, (row,), {}, None)

    assert likeliest({"forced": sweep(1.0, 9.0), "own": sweep(1.0, 2.0), "misses": sweep(None, 1.0)}) == "own"
    assert likeliest({"a": sweep(None, 3.0), "b": sweep(None, 2.0)}) == "b"


def test_copying_is_the_share_of_the_passage_that_is_most_likely(in_benchmarks):
    from repetition import copying

    class Copies(torch.nn.Module):
        """Says the token that stands 32 places before the next one, and token 1 in every other row."""

        device = torch.device("cpu")

        def forward(self, input_ids):
            said = input_ids.roll(31, dims=1).clone()
            said[1::2] = 1
            return type("Output", (), {"logits": torch.nn.functional.one_hot(said, 400).float()})

    def tokenizer(text, add_special_tokens):
        return {"input_ids": [2 + ord(character) % 100 for character in text]}

    pages = [{"completion": [{"content": "the quick brown fox jumps over a lazy dog"}]} for _ in range(4)]
    assert copying(Copies(), tokenizer, [*pages, {"completion": [{"content": "short"}]}]) == 0.5


def test_the_repetition_table_counts_over_seeds(in_benchmarks):
    from repetition_report import by_arm, table

    def result(arm, seed, count, hits):
        rate = {"count": count, "n": 100, "rate": count / 100}
        overall = {"endless": rate, "near_loop": rate, "mean_tokens": 120.0}
        log = [{"steer/hit_rate": hit} for hit in hits]
        return {
            "arm": arm, "seed": seed, "overall": overall, "greedy": {"endless": 5, "n": 10}, "loss": {"en": 3.0},
            "copying": 0.4, "log": log,
        }  # fmt: skip

    rows = [result("sae", 1, 1, [1.0] * 5 + [0.5] * 5), result("sae", 0, 3, [1.0] * 5 + [0.5] * 5)]
    rows += [result("plain", 0, 8, []), result("before", 0, 10, [])]
    lines = table(by_arm(rows)).splitlines()
    assert lines[2].startswith("| start, not trained | 1 | 10 of 100 (10) | 10.0%")
    assert lines[3].split(" | ")[4:6] == ["-20%", ""]
    assert "| 4 of 200 (3, 1) | 2.0% (0.8% to 5.0%) | -80% | -75% |" in lines[4]
    assert lines[4].endswith("| 1.00, 0.50 |")
