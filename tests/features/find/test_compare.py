import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_posttrain import FeatureSet, FrozenSAE, find_features
from sae_posttrain.cli import main
from sae_posttrain.features.find.compare import best_of_each_place, compare_features
from sae_posttrain.saes.stored.source import SAESource

ALPHABETS = {"zh": "qxzjkv", "en": "aeioun", "ko": "tslrdm"}


def rows():
    letters = random.Random(0)
    return [
        {"lang": group, "text": "".join(letters.choices(alphabet, k=40))}
        for _ in range(10)
        for group, alphabet in ALPHABETS.items()
    ]


def search(model, tokenizer, num_features):
    """Features of a random SAE of block 0."""
    generator = torch.Generator().manual_seed(0)
    sae = FrozenSAE(
        W_enc=torch.randn(32, 24, generator=generator),
        b_enc=torch.zeros(24),
        W_dec=torch.randn(24, 32, generator=generator),
        b_dec=torch.zeros(32),
        activation="relu",
        block=0,
        source=SAESource("owner/sae", "c" * 40, "layer0.sae.pt", "qwen_scope", Path("not here")),
    )
    return find_features(model, sae, rows(), target_group="zh", num_features=num_features, tokenizer=tokenizer)


def take_out(model, row):
    """A model that no longer writes along `row` up to its first block."""
    row = row / row.norm()
    block = model.model.layers[0]
    with torch.no_grad():
        model.model.embed_tokens.weight -= torch.outer(model.model.embed_tokens.weight @ row, row)
        for matrix in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            matrix -= torch.outer(row, row @ matrix)
    return model


def test_a_model_that_was_not_tuned_has_not_moved(make_model, tokenizer):
    before, after = (search(make_model(), tokenizer, num) for num in (2, 6))
    comparison = compare_features(before, after)
    assert [(each.rank_before, each.rank) for each in comparison.old] == [(1, 1), (2, 2)]
    assert comparison.old[0].scores == comparison.old[0].scores_before
    assert comparison.moved_to == ()
    assert comparison.verdict.startswith("Not moved: the 2 features")


def test_a_feature_that_the_tuned_model_does_not_write_is_lost_and_another_takes_its_place(make_model, tokenizer):
    before = search(make_model(), tokenizer, 1)
    comparison = compare_features(before, search(take_out(make_model(), before.encoder_rows[0]), tokenizer, 4))
    (lost,) = comparison.lost
    assert (lost.name, lost.rank, lost.scores) == (before.names[0], None, {})
    (new,) = comparison.moved_to
    assert new.feature_id not in before.feature_ids and new.rank == 1
    assert comparison.verdict.startswith("Moved: 1 of 1 features found before is no longer")
    assert f"{new.name} has come in their place" in comparison.verdict
    table = str(comparison)
    assert "not among 4" in table and "new" in table and "monolinguality before/now" in table


def test_one_of_two_features_has_moved_in_part(make_model, tokenizer):
    wide = search(make_model(), tokenizer, 4)
    comparison = compare_features(wide[[0, 3]], wide)
    assert [each.still_found for each in comparison.old] == [True, False]
    assert comparison.verdict.startswith("Moved in part: 1 of 2 features found before is no longer")


def test_features_that_all_left_have_moved(make_model, tokenizer):
    wide = search(make_model(), tokenizer, 6)
    comparison = compare_features(wide[:2], wide[2:])
    assert comparison.verdict.startswith("Moved: 2 of 2 features found before are no longer")
    assert [each.name for each in comparison.moved_to] == list(wide.names[2:4])


def test_a_feature_that_fell_in_rank_is_listed_with_its_scores(make_model, tokenizer):
    wide = search(make_model(), tokenizer, 6)
    comparison = compare_features(wide[[3]], wide)
    (old,) = comparison.old
    assert (old.rank_before, old.rank, old.still_found) == (1, 4, False)
    assert old.scores["auroc"] == pytest.approx(float(wide.scores["auroc"][3]))
    assert [each.name for each in comparison.moved_to] == [wide.names[0]]


def test_a_target_that_no_feature_stands_for_any_more_is_gone(make_model, tokenizer):
    wide = search(make_model(), tokenizer, 2)
    assert compare_features(wide, wide[:1]).verdict.startswith("Gone: 1 of 2")


def test_sets_that_cannot_be_compared_are_refused(make_model, tokenizer):
    found = search(make_model(), tokenizer, 2)
    with pytest.raises(ValueError, match="Search block 1 again too"):
        compare_features(replace(found, blocks=(1, 1)), found)
    with pytest.raises(ValueError, match="found for 'ko', those now for 'zh'"):
        compare_features(replace(found, target_groups=("ko",)), found)
    with pytest.raises(ValueError, match="ranked by 'output', those now ranked by 'monolinguality'"):
        compare_features(replace(found, notes={"rank_by": "output"}), found)
    with pytest.raises(ValueError, match="different SAEs"):
        compare_features(found, replace(found, encoder_rows=found.encoder_rows + 1))


def test_the_best_of_each_place_are_the_first_in_the_order_of_the_search(make_features):
    features = make_features(blocks=(0, 1), per_block=3)
    assert best_of_each_place(features, 2).names == tuple(features.names[i] for i in (0, 1, 3, 4))


def test_find_features_on_a_tuned_model_says_whether_they_moved(tmp_path, make_model, tokenizer, capsys):
    generator = torch.Generator().manual_seed(0)
    weights = {
        "W_enc": torch.randn(64, 32, generator=generator),
        "W_dec": torch.randn(32, 64, generator=generator),
        "b_enc": torch.zeros(64),
        "b_dec": torch.zeros(32),
    }
    (tmp_path / "sae").mkdir()
    torch.save(weights, tmp_path / "sae" / "layer0.sae.pt")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    tokenizer.save_pretrained(tmp_path / "model")
    make_model().save_pretrained(tmp_path / "model")

    def find(out, *more):
        options = ["--texts", str(tmp_path / "texts.jsonl"), "--target-group", "zh", "--blocks", "0", "--k", "8"]
        where = ["--model", str(tmp_path / "model"), "--sae", str(tmp_path / "sae"), "--out", str(tmp_path / out)]
        return main(["find-features", *where, *options, *more])

    assert find("old.safetensors") == 0
    capsys.readouterr()
    assert find("new.safetensors", "--compare", str(tmp_path / "old.safetensors")) == 0
    assert "Not moved: the 2 features found before" in capsys.readouterr().out
    assert "Not moved" in (tmp_path / "new.txt").read_text(encoding="utf-8")
    found = []
    for name in ("old", "new"):
        feature_set = FeatureSet.load(tmp_path / f"{name}.safetensors")
        command = feature_set.notes.pop("command")
        assert (
            command.startswith("sae-posttrain find-features --model model ") and f"--out {name}.safetensors" in command
        )
        found.append(feature_set.save(tmp_path / f"{name}-found.safetensors").read_bytes())
    assert found[0] == found[1]  # comparing changes nothing in what is found
    assert find("third.safetensors", "--check", "--compare", str(tmp_path / "old.safetensors")) == 2
    assert "Run one, then the other" in capsys.readouterr().err
