"""`classify` and `coverage` from end to end, on a tiny model in a folder laid out as on the Hub."""

import json

import pytest
import torch

from sae_posttrain import FeatureSet
from sae_posttrain.cli import main

WORDS = {"good": ["aaaa a", "aa aa", "aaa", "a aa"], "bad": ["zzzz z", "zz zz", "zzz", "z zz"]}


@pytest.fixture
def folder(tmp_path, make_model, tokenizer):
    make_model().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "sae").mkdir()
    for block in (0, 1):
        weights = {
            "W_enc": torch.randn(64, 32, generator=generator),
            "W_dec": torch.randn(32, 64, generator=generator),
            "b_enc": torch.zeros(64),
            "b_dec": torch.zeros(32),
        }
        torch.save(weights, tmp_path / "sae" / f"layer{block}.sae.pt")
    rows = [
        {"text": f"{word} {i}{word}", "label": label, "lang": "en" if i % 2 else "es"}
        for label, words in WORDS.items()
        for i in range(12)
        for word in words[: 4 if i < 6 else 2]
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def common(folder, *extra):
    model = ["--model", str(folder / "tiny"), "--sae", str(folder / "sae"), "--k", "4"]
    return [*model, *map(str, extra)]


def classify(folder, action, *extra):
    return main(["classify", action, "--texts", str(folder / "texts.jsonl"), *common(folder, *extra)])


def test_fit_writes_a_classifier_and_a_report_and_predict_labels_texts(folder, capsys):
    out = folder / "bad.safetensors"
    fit = ["--blocks", 0, 1, "--positive", "bad", "--out", out, "--cache", folder / "kept.safetensors"]
    assert classify(folder, "fit", *fit, "--transfer-column", "lang") == 0
    said = capsys.readouterr().out
    for part in ("SAE, any of K fires (published)", "TF-IDF + logistic regression", "logistic probe", "learnt from"):
        assert part in said
    assert FeatureSet.load(out).notes["classifier"]["labels"] == ["bad", "good"]
    results = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert results["report"]["num_test"] >= 10 and set(results["transfer_f1"]["majority"]) == {"en", "es"}
    assert out.with_suffix(".txt").exists() and (folder / "kept.safetensors").exists()
    assert classify(folder, "fit", *fit) == 2  # the files are there
    assert "--overwrite" in capsys.readouterr().err

    labelled = folder / "labelled.jsonl"
    assert classify(folder, "predict", "--classifier", out, "--out", labelled) == 0
    rows = [json.loads(line) for line in labelled.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len((folder / "texts.jsonl").read_text().splitlines())
    assert {row["predicted"] for row in rows} == {"bad", "good"}
    assert all((row["score"] > 0) == (row["predicted"] == "bad") for row in rows)
    assert sum(row["predicted"] == row["label"] for row in rows) / len(rows) > 0.6
    assert "bad: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("action", "extra", "message"),
    [
        ("fit", ["--out", "c.safetensors"], "needs --blocks"),
        ("fit", ["--blocks", 1, "--out", "c.pickle"], "--out must end in .safetensors"),
        ("fit", ["--blocks", 1, "--out", "c.safetensors", "--classifier", "c"], "--classifier does not belong to"),
        ("fit", ["--blocks", 1, "--out", "c.safetensors", "--labels", "bad"], "--labels names two labels"),
        ("fit", ["--blocks", 1, "--out", "c.safetensors", "--label-column", "mood"], "no label in the column 'mood'"),
        ("predict", ["--out", "p.jsonl"], "needs --classifier"),
        ("predict", ["--out", "p.jsonl", "--rule", "any"], "--rule does not belong to `classify predict`"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(folder, action, extra, message, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert classify(folder, action, *extra) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert sorted(folder.iterdir()) == before


def test_coverage_writes_a_page_figures_and_the_chosen_examples(folder, capsys):
    out = folder / "page.html"
    data = [str(folder / "texts.jsonl"), *common(folder, "--blocks", 1, "--out", out)]
    extra = ["--group-column", "label", "--select", "0.25", "--pool", "max"]
    assert main(["coverage", *data, *extra]) == 0
    said = capsys.readouterr().out
    assert "R̂ at equal N" in said and "examples cover" in said
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "prefers-color-scheme: dark" in page
    assert "<script" not in page and "bad" in page and "<svg" in page
    figures = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert set(figures["sets"]) == {"bad", "good"} and figures["overlap"]["names"] == ["bad", "good"]
    chosen = out.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    assert len(chosen) == round(0.25 * len((folder / "texts.jsonl").read_text().splitlines()))
    assert main(["coverage", *data, *extra]) == 2 and "--overwrite" in capsys.readouterr().err


def test_coverage_shows_what_no_set_touches_on_reference_texts(folder, capsys):
    (folder / "few.jsonl").write_text(json.dumps({"text": "aa aa"}) + "\n")
    out, reference = folder / "few.html", str(folder / "texts.jsonl")
    data = [str(folder / "few.jsonl"), *common(folder, "--blocks", 1, "--out", out, "--reference", reference)]
    assert main(["coverage", *data]) == 0
    found = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    shown = found["untouched_in_reference"]["features"]
    assert 0 < len(shown) <= found["untouched_in_reference"]["num_fire"]
    assert {int(feature) for feature in shown} <= set(found["untouched"])
    counts = list(shown.values())
    assert counts == sorted(counts, reverse=True) and counts[-1] > 0
    page = out.read_text(encoding="utf-8")
    assert page.count("Its direction promotes") == len(shown) and '<mark class="a' in page
    missing = common(folder, "--blocks", 1, "--out", folder / "x.html", "--reference", folder / "none.jsonl")
    assert main(["coverage", str(folder / "few.jsonl"), *missing]) == 2
    assert "none.jsonl" in capsys.readouterr().err and not (folder / "x.html").exists()


def test_each_file_is_a_set_and_one_set_has_no_overlap(folder, capsys):
    out = folder / "one.html"
    assert main(["coverage", str(folder / "texts.jsonl"), *common(folder, "--blocks", 1, "--out", out)]) == 0
    assert "Which sets repeat each other" not in out.read_text(encoding="utf-8")
    assert list(json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["sets"]) == ["texts"]
    capsys.readouterr()
    two = ["--blocks", 0, 1, "--out", folder / "two.html"]
    assert main(["coverage", str(folder / "texts.jsonl"), *common(folder, *two)]) == 2
    assert "Coverage is that of one block" in capsys.readouterr().err
