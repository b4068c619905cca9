"""A page for any feature set, and names."""

import argparse

import pytest

from sae_posttrain import FeatureSet
from sae_posttrain.analysis import show_features
from sae_posttrain.analysis.show import name_features
from sae_posttrain.cli.show import add_show

TEXTS = [{"lang": lang, "text": f"some text {lang} number {n}"} for n in range(3) for lang in ("en", "ko")]


def test_page_of_a_set_has_groups_side_by_side(make_model, make_features, tokenizer, tmp_path):
    page = show_features(make_model(), make_features(), TEXTS, tmp_path / "p.html", tokenizer=tokenizer)
    html = page.read_text(encoding="utf-8")
    assert "<h4>en</h4>" in html and "<h4>ko</h4>" in html
    assert "underlined" not in html and "Without the SAE" in html and html.count("Its direction promotes") == 4


def test_with_its_sae_the_page_shows_what_fires_there(make_model, make_sae, tokenizer, tmp_path):
    sae = make_sae(1)
    features = FeatureSet.from_sae(sae, [3, 4])
    page = show_features(make_model(), features, TEXTS, tmp_path / "p.html", tokenizer=tokenizer, sae=sae)
    assert "Without the SAE" not in page.read_text(encoding="utf-8")


def test_names_are_given_by_block_and_number(make_features):
    features = make_features()
    named = name_features(features, {"1:23": "loop"})
    assert named.names == ("0.3", "0.13", "loop", "1.33")
    with pytest.raises(ValueError, match="no feature '7:1'. It has 0:3"):
        name_features(features, {"7:1": "x"})


@pytest.fixture
def run(make_model, make_features, tokenizer, tmp_path):
    make_model().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    make_features().save(tmp_path / "f.safetensors")

    def call(*given):
        parser = argparse.ArgumentParser()
        add_show(parser)
        arguments = parser.parse_args([str(tmp_path / "f.safetensors"), *given])
        arguments.run(arguments)

    return call


def test_command_writes_names_into_the_file_and_the_page_beside_it(run, tmp_path, capsys):
    texts = tmp_path / "texts.csv"
    texts.write_text("text\none text\nanother text\n")
    run("--texts", str(texts), "--model", str(tmp_path / "tiny"), "--name", "0:3=loop")
    assert FeatureSet.load(tmp_path / "f.safetensors").names[0] == "loop"
    assert (tmp_path / "f.html").is_file() and "Written: " in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="--overwrite"):
        run("--texts", str(texts), "--model", str(tmp_path / "tiny"))


def test_command_says_what_is_missing(run):
    with pytest.raises(ValueError, match="Give `texts`"):
        run()
    with pytest.raises(ValueError, match="Give the `model`"):
        run("--texts", "a.jsonl")
    with pytest.raises(ValueError, match="BLOCK:NUMBER=NAME"):
        run("--name", "loop")
