import gzip
import json
import logging
import random
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from sae_posttrain import FeatureSet, FrozenSAE, find_features
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.features.read.texts import split_held_out, tokenize
from sae_posttrain.saes.stored.source import SAESource
from sae_posttrain.sites import transformer_lens_hook

WIDTH, NUM_FEATURES, PLANTED = 32, 24, 17
ALPHABETS = {"zh": "qxzjkv", "en": "aeioun", "ko": "tslrdm"}


def rows_of(alphabets: dict[str, str], num: int = 10, column: str = "lang") -> list[dict[str, str]]:
    """Texts of unlike lengths in random letters of each group's alphabet, the groups in turn."""
    letters = random.Random(0)
    lengths = [36 + 3 * i for i in range(num)]
    return [
        {column: group, "text": "".join(letters.choices(alphabet, k=length))}
        for length in lengths
        for group, alphabet in alphabets.items()
    ]


ROWS = rows_of(ALPHABETS)


@torch.no_grad()
def residuals(model, text: str, tokenizer, block: int) -> Tensor:
    """What the block writes at the tokens that count, the text read by itself."""
    written = []
    with model.model.layers[block].register_forward_hook(lambda _m, _a, output: written.append(output)):
        model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
    return written[0][0, 1:]


def group_residuals(model, rows, tokenizer, block: int, column: str = "lang") -> dict[str, Tensor]:
    groups = dict.fromkeys(row[column] for row in rows)
    return {
        group: torch.cat([residuals(model, row["text"], tokenizer, block) for row in rows if row[column] == group])
        for group in groups
    }


def make_sae(block: int, W_enc: Tensor, b_enc: Tensor, activation: str = "relu", **settings) -> FrozenSAE:
    return FrozenSAE(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=torch.randn(W_enc.shape[1], WIDTH, generator=torch.Generator().manual_seed(50 + block)),
        b_dec=torch.zeros(WIDTH),
        activation=activation,
        block=block,
        source=SAESource("owner/sae", "c" * 40, f"layer{block}.sae.pt", "qwen_scope", Path("not here")),
        **settings,
    )


def random_sae(block: int, **settings) -> FrozenSAE:
    normal = torch.Generator().manual_seed(block)
    W_enc = torch.randn(WIDTH, NUM_FEATURES, generator=normal) / 4
    return make_sae(block, W_enc, torch.randn(NUM_FEATURES, generator=normal) / 4, **settings)


def planted_sae(model, tokenizer, block: int, rows=ROWS, target: str = "zh", column: str = "lang") -> FrozenSAE:
    """A random SAE, but one feature reads the direction from the other groups' mean residual to the target's."""
    read = group_residuals(model, rows, tokenizer, block, column)
    others = torch.cat([residual for group, residual in read.items() if group != target]).mean(dim=0)
    difference = read[target].mean(dim=0) - others
    direction = 4 * normalize(difference, dim=0)
    sae = random_sae(block)
    W_enc, b_enc = sae.W_enc / 10, sae.b_enc.clone()
    W_enc[:, PLANTED] = direction
    b_enc[PLANTED] = -(others + 0.6 * difference) @ direction  # fires beyond the middle
    return replace(sae, W_enc=W_enc, b_enc=b_enc)


@pytest.fixture
def model(make_model):
    return make_model().eval()


@pytest.fixture
def find(model, tokenizer):
    """`find_features` on the tiny model and the standing texts, unless told otherwise."""

    def call(sae, texts=ROWS, *, target_group: str = "zh", **settings) -> FeatureSet:
        settings = {"tokenizer": tokenizer, "text_options": TextOptions(batch_size=4).take(settings)} | settings
        return find_features(settings.pop("model", model), sae, texts, target_group=target_group, **settings)

    return call


def save_qwen_scope(sae: FrozenSAE, folder: Path) -> None:
    stored = {"W_enc": sae.W_enc.T.contiguous(), "W_dec": sae.W_dec.T.contiguous()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({**stored, "b_enc": sae.b_enc, "b_dec": sae.b_dec}, folder / f"layer{sae.block}.sae.pt")


def save_saelens(sae: FrozenSAE, folder: Path) -> None:
    folder.mkdir(parents=True)
    config = {"architecture": "standard", "d_in": WIDTH, "d_sae": NUM_FEATURES, "apply_b_dec_to_input": False}
    config |= {"normalize_activations": "none", "dtype": "float32"}
    config["metadata"] = {"hook_name": transformer_lens_hook(sae.block, sae.site), "sae_lens_version": "6.20.0"}
    (folder / "cfg.json").write_text(json.dumps(config))
    tensors = {name: getattr(sae, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    save_file(tensors, folder / "sae_weights.safetensors")


def assert_same_set(one: FeatureSet, other: FeatureSet, rtol: float = 1e-6, atol: float = 1e-6) -> None:
    close = {"rtol": rtol, "atol": atol, "equal_nan": True}
    for name in ("blocks", "feature_ids", "names", "groups", "target_groups", "base_model", "notes"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("encoder_rows", "encoder_bias", "directions", "mean", "std", "residual_norms", "thresholds"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), **close)
    assert one.scores.keys() == other.scores.keys()
    for name, score in one.scores.items():
        torch.testing.assert_close(score, other.scores[name], **close)


# What is found -------------------------------------------------------------------------------------------------------


def test_planted_feature_is_found_first_in_every_block(model, tokenizer, find):
    saes = [planted_sae(model, tokenizer, block) for block in (0, 1)]
    found = find(saes, num_features=2)
    assert found.blocks[0] == 0 and found.feature_ids[0] == PLANTED
    first_of_second = found.blocks.index(1)
    assert found.feature_ids[first_of_second] == PLANTED
    assert found.names[0] == f"zh.0.{PLANTED}"
    for i in (0, first_of_second):
        assert found.scores["auroc"][i] == 1.0
        assert found.scores["monolinguality"][i] > 0.5
        assert found.scores["firing_rate"][i] > 0.5 > 5 * found.scores["firing_rate_elsewhere"][i]
    sae = saes[0]
    assert found.encoder_rows[0].equal(sae.W_enc[:, PLANTED])
    assert found.encoder_bias[0] == sae.b_enc[PLANTED]
    assert found.directions[0].equal(sae.W_dec[PLANTED])
    assert (found.groups, found.target_groups) == (("en", "ko", "zh"), ("zh",))


@pytest.mark.parametrize("site", ["mlp_out", "attn_z", "resid_mid"])
def test_features_of_another_site_are_found_and_measured_there(model, tokenizer, find, site):
    sae = replace(random_sae(1), site=site)
    found = find([sae], num_features=2, check=True)
    assert found.places == ((1, site),)
    assert found.names[0] == f"zh.1.{site}.{found.feature_ids[0]}"
    block, seen = model.model.layers[1], []
    with torch.no_grad(), ExitStack() as hooks:
        see = {
            "mlp_out": lambda: block.mlp.register_forward_hook(lambda _m, _a, output: seen.append(output)),
            "attn_z": lambda: block.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0])),
            "resid_mid": lambda: block.post_attention_layernorm.register_forward_pre_hook(
                lambda _m, args: seen.append(args[0])
            ),
        }
        hooks.enter_context(see[site]())
        kept, _ = split_held_out(tokenize(ROWS, tokenizer), 0.2, None, 0)
        for text in kept:
            model(input_ids=torch.tensor([text.ids]))
    values = torch.cat([value[0, 1:] for value in seen])
    zh = torch.cat([value[0, 1:] for value, text in zip(seen, kept) if text.group == "zh"])
    torch.testing.assert_close(found.residual_norms[0], values.norm(dim=1).median())
    pre = found.pre_activations(zh)
    torch.testing.assert_close(found.mean[:, found.groups.index("zh")], pre.mean(dim=0), rtol=1e-4, atol=1e-4)
    assert not found.scores["output"].isnan().any()
    assert found.notes["check"]["loss"] != found.notes["check"]["loss_without"]
    found.check_model(model)


def test_saes_of_several_sites_are_searched_at_once_or_one_of_them(find):
    saes = [replace(random_sae(1), site=site) for site in ("mlp_out", "resid_post")]
    both = find(saes, num_features=1)
    assert both.places == ((1, "mlp_out"), (1, "resid_post"))
    assert len(set(both.names)) == 2
    assert find(saes, num_features=1, site="mlp_out").places == ((1, "mlp_out"),)
    with pytest.raises(
        ValueError, match=r"one SAE for attn_z of each block of \[1\]; these read mlp_out of block 1, bl"
    ):
        find(saes, site="attn_z")
    with pytest.raises(ValueError, match=r"one SAE for each block of \[1\]; these read mlp_out of block 1, mlp_out"):
        find([saes[0], saes[0]])


def test_site_tells_which_of_a_folders_saes_is_meant(find, tmp_path):
    for site in ("mlp_out", "resid_post"):
        save_saelens(replace(random_sae(1), site=site), tmp_path / site)
    assert find(tmp_path, blocks=[1], site="mlp_out").places == ((1, "mlp_out"),)
    with pytest.raises(ValueError, match="holds 2 SAEs of block 1"):
        find(tmp_path, blocks=[1])


def test_groups_need_not_be_languages(model, tokenizer, find):
    rows = rows_of({"good": "abcdef", "bad": "uvwxyz"}, column="label")
    sae = planted_sae(model, tokenizer, 1, rows, target="bad", column="label")
    found = find(sae, rows, target_group="bad", group_column="label", num_features=1)
    assert found.feature_ids == (PLANTED,)
    assert found.scores["auroc"].tolist() == [1.0]
    assert (found.groups, found.names) == (("bad", "good"), (f"bad.1.{PLANTED}",))


def test_statistics_and_scores_are_those_of_the_naive_computation(model, tokenizer, find):
    sae = random_sae(1)
    found = find(sae, num_features=3)
    kept, _ = split_held_out(tokenize(ROWS, tokenizer), 0.2, None, seed=0)
    rows = [{"lang": text.group, "text": tokenizer.decode(text.ids)} for text in kept]
    read = group_residuals(model, rows, tokenizer, 1)
    pre = {group: (residual @ sae.W_enc + sae.b_enc)[:, list(found.feature_ids)] for group, residual in read.items()}
    for column, group in enumerate(found.groups):
        torch.testing.assert_close(found.mean[:, column], pre[group].mean(dim=0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.std[:, column], pre[group].std(dim=0, correction=0), rtol=1e-3, atol=1e-4)
    mean_act = {group: each.relu().mean(dim=0) for group, each in pre.items()}
    rate = {group: (each > 0).float().mean(dim=0) for group, each in pre.items()}
    monolinguality = mean_act["zh"] - (mean_act["en"] + mean_act["ko"]) / 2
    torch.testing.assert_close(found.scores["monolinguality"], monolinguality, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.scores["firing_rate"], rate["zh"])
    torch.testing.assert_close(found.scores["firing_rate_elsewhere"], torch.maximum(rate["en"], rate["ko"]))
    norms = torch.cat([residual.norm(dim=1) for residual in read.values()])
    torch.testing.assert_close(found.residual_norms, norms.median().expand(3))
    assert found.notes["num_texts"] == {"en": 8, "ko": 8, "zh": 8}
    assert found.notes["num_held_out"] == {"en": 2, "ko": 2, "zh": 2}
    assert found.notes["num_duplicates"] == {}
    # the first byte of a text does not count
    lengths = {group: [len(row["text"]) - 1 for row in rows if row["lang"] == group] for group in ALPHABETS}
    assert found.notes["num_tokens"] == {group: sum(lengths[group]) for group in found.groups}


def test_auroc_is_measured_on_the_mean_pre_activation_of_held_out_texts(model, tokenizer, find):
    sae = random_sae(1)
    found = find(sae, num_features=NUM_FEATURES, held_out=0.5, seed=3)
    assert found.notes["num_held_out"] == {"en": 5, "ko": 5, "zh": 5}
    means = {group: [] for group in ALPHABETS}
    for text in split_held_out(tokenize(ROWS, tokenizer), 0.5, None, seed=3)[1]:
        pre = residuals(model, tokenizer.decode(text.ids), tokenizer, 1) @ sae.W_enc + sae.b_enc
        means[text.group].append(pre[:, list(found.feature_ids)].mean(dim=0))
    pairs = [(a, b) for a in means["zh"] for b in means["en"] + means["ko"]]
    wins = sum((a > b).float() for a, b in pairs) / len(pairs)
    assert len(wins.unique()) > 2
    torch.testing.assert_close(found.scores["auroc"], wins)


def test_rank_by_auroc_takes_the_best_readers_and_leaves_ties_to_monolinguality(find):
    normal = torch.Generator().manual_seed(0)
    loud = torch.rand(60, generator=normal) * 5  # so that monolinguality says little of how well a feature reads
    sae = make_sae(1, torch.randn(WIDTH, 60, generator=normal) * loud, torch.randn(60, generator=normal) * loud)
    everything = find(sae, num_features=60)
    nu, area = everything.scores["monolinguality"].tolist(), everything.scores["auroc"].tolist()
    assert nu == sorted(nu, reverse=True)
    order = sorted(range(len(nu)), key=lambda i: (-area[i], -nu[i]))
    assert order != sorted(order) and len(set(area)) < len(area)  # the two scores disagree, and there are ties
    for num in (1, len(order)):
        best = find(sae, num_features=num, num_candidates=60, rank_by="auroc")
        assert best.feature_ids == tuple(everything.feature_ids[i] for i in order[:num])


def test_rank_by_output_takes_the_feature_that_also_writes_the_group(model, tokenizer, find):
    sae = planted_sae(model, tokenizer, 1)
    reader, writer = PLANTED, 3
    own_tokens = tokenizer(ALPHABETS["zh"])["input_ids"]
    W_enc, b_enc, W_dec = sae.W_enc.clone(), sae.b_enc.clone(), sae.W_dec.clone()
    W_enc[:, writer], b_enc[writer] = W_enc[:, reader] / 2, b_enc[reader] / 2  # reads the same, half as loud
    W_dec[writer] = model.lm_head.weight[own_tokens].mean(dim=0).detach()
    W_dec[reader] = -W_dec[writer]
    sae = replace(sae, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec)
    by_reading = find(sae, num_features=2, strength=3.0)
    assert by_reading.feature_ids == (reader, writer)
    assert by_reading.scores["output"][1] > 0.1 > 0 > by_reading.scores["output"][0]
    assert by_reading.notes["num_target_tokens"] == len(ALPHABETS["zh"])
    assert find(sae, num_features=1, strength=3.0, rank_by="output").feature_ids == (writer,)


def test_feature_that_stands_for_two_groups_is_not_found_for_one(model, tokenizer, find):
    sae = planted_sae(model, tokenizer, 1)
    read = group_residuals(model, ROWS, tokenizer, 1)
    # A feature of two groups: about 5 on zh, 6 on ko and below 0 on en.
    levels = torch.cat(
        [torch.full((len(read[group]), 1), level) for group, level in (("zh", 5.0), ("ko", 6.0), ("en", -5.0))]
    )
    of_two = torch.linalg.lstsq(torch.cat([read["zh"], read["ko"], read["en"]]), levels).solution.flatten()
    acts = {group: (residual @ of_two).relu() for group, residual in read.items()}
    assert acts["zh"].mean() > (acts["ko"].mean() + acts["en"].mean()) / 2  # its monolinguality is above 0, but
    assert (acts["ko"] > 0).float().mean() >= (acts["zh"] > 0).float().mean()
    W_enc, b_enc = sae.W_enc.clone(), sae.b_enc.clone()
    W_enc[:, 5], b_enc[5] = of_two, 0
    found = find(replace(sae, W_enc=W_enc, b_enc=b_enc), num_features=NUM_FEATURES)
    assert 5 not in found.feature_ids
    assert PLANTED in found.feature_ids


def test_settings_and_the_check_stand_in_the_notes(model, tokenizer, find):
    sae = planted_sae(model, tokenizer, 1)
    found = find(sae, num_features=1, check=True, strength=0.25)
    assert (found.notes["rank_by"], found.notes["strength"]) == ("monolinguality", 0.25)
    losses = found.notes["check"]
    assert losses.keys() == {"loss", "loss_without"}
    assert losses["loss"].keys() == losses["loss_without"].keys() == set(ALPHABETS)
    assert losses["loss"] != losses["loss_without"]
    assert "check" not in find(sae, num_features=1).notes


def test_warning_names_a_chosen_feature_that_fires_elsewhere(model, tokenizer, find, caplog):
    sae = planted_sae(model, tokenizer, 1)
    with caplog.at_level(logging.WARNING, "sae_posttrain"):
        find(sae, num_features=1)
    assert not caplog.records
    wide_awake = sae.b_enc.clone()
    korean = group_residuals(model, ROWS, tokenizer, 1)["ko"] @ sae.W_enc[:, PLANTED]
    wide_awake[PLANTED] = -korean.quantile(0.3)  # now it fires on 70 % of the Korean tokens too
    with caplog.at_level(logging.WARNING, "sae_posttrain"):
        found = find(replace(sae, b_enc=wide_awake), num_features=1)
    assert found.feature_ids == (PLANTED,)
    [record] = caplog.records
    assert record.getMessage().startswith(f"Feature zh.1.{PLANTED} fires on ")


def test_groups_of_one_vocabulary_have_no_output_score(tokenizer, model, find, caplog):
    # The two groups use the same letters equally often, in another order.
    rows = [
        {"lang": group, "text": text * times}
        for group, text in (("up", "abcd"), ("down", "dcba"))
        for times in (18, 20, 22)
    ]
    sae = random_sae(1)
    found = find(sae, rows, target_group="up", num_features=1)
    assert found.scores["output"].isnan().all()
    assert found.notes["num_target_tokens"] == 0
    assert "no output score" in caplog.text
    with pytest.raises(ValueError, match="`rank_by='output'` needs tokens that only the target group uses"):
        find(sae, rows, target_group="up", rank_by="output")


# What it is found with -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_model_keeps_its_mode_and_its_blocks(model, tokenizer, find, training):
    model.train(training)
    find(planted_sae(model, tokenizer, 1), num_features=1, check=True)
    assert all(module.training is training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="No feature fires"):
        find(replace(random_sae(1), b_enc=torch.full((NUM_FEATURES,), -1e6)))
    assert model.training is training


def test_loaded_saes_and_their_files_find_the_same(model, tokenizer, find, tmp_path):
    saes = [planted_sae(model, tokenizer, block) for block in (0, 1)]
    saes = [replace(sae, activation="topk", k=4, relu_after_topk=False) for sae in saes]
    for sae in saes:
        save_qwen_scope(sae, tmp_path)
    from_files = find(tmp_path, blocks=[0, 1], k=4)
    assert_same_set(from_files, find(saes))
    assert_same_set(from_files, find(str(tmp_path), blocks=[0, 1], k=4))
    assert {source.format for source in from_files.sources} == {"qwen_scope"}


def test_blocks_choose_among_loaded_saes(model, tokenizer, find):
    saes = [planted_sae(model, tokenizer, block) for block in (0, 1)]
    assert set(find(saes, blocks=[1]).blocks) == {1}


def test_some_features_of_an_sae_keep_their_numbers(model, tokenizer, find):
    whole = planted_sae(model, tokenizer, 1)
    held = [20, PLANTED, 2]
    some = replace(
        whole,
        W_enc=whole.W_enc[:, held],
        b_enc=whole.b_enc[held],
        W_dec=whole.W_dec[held],
        features=tuple(held),
    )
    one, other = find(some, num_features=1), find(whole, num_features=1)
    assert one.feature_ids == (PLANTED,)
    assert_same_set(one, other, rtol=1e-4, atol=1e-3)


def test_result_survives_the_file(model, tokenizer, find, tmp_path):
    sae = planted_sae(model, tokenizer, 1)
    save_qwen_scope(sae, tmp_path / "sae")
    sae = replace(sae, source=replace(sae.source, path=tmp_path / "sae" / "layer1.sae.pt"))
    found = find(sae, num_features=2, check=True)
    loaded = FeatureSet.load(found.save(tmp_path / "zh"))
    assert_same_set(loaded, found)
    assert loaded.sources[0].sha256 == sae.source.sha256()


def test_model_tokenizer_and_texts_can_be_given_by_their_paths(model, tokenizer, find, tmp_path):
    model.save_pretrained(tmp_path / "tiny-model")
    tokenizer.save_pretrained(tmp_path / "tiny-model")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "texts.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    sae = planted_sae(model, tokenizer, 1)
    settings = {"model": str(tmp_path / "tiny-model"), "tokenizer": None}
    found = find(sae, tmp_path / "texts.jsonl.gz", **settings)
    assert found.base_model == "tiny-model"  # a feature set travels, the folder does not
    assert_same_set(replace(found, base_model=""), find(sae, ROWS))


def test_batch_size_does_not_change_the_result(model, tokenizer, find):
    sae = planted_sae(model, tokenizer, 1)
    assert_same_set(find(sae, batch_size=1), find(sae, batch_size=64), rtol=1e-4, atol=1e-3)


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_group": "fr"}, "No text belongs to the target group 'fr'; the groups are en, ko, zh"),
        ({"group_column": "language"}, "no group column `language`; it has lang, text.*`group_column`"),
        (
            {"texts": [row for row in ROWS if row["lang"] == "zh"]},
            "All texts belong to 'zh'. Add texts of other groups",
        ),
        ({"texts": []}, "There are no texts"),
        ({"text_column": "body"}, "no text in the column `body`"),
        ({"rank_by": "luck"}, "`rank_by` must be one of 'monolinguality', 'auroc', 'output', got 'luck'"),
        ({"num_features": 0}, "`num_features` must be 1 or more"),
        ({"held_out": 1.0}, "`held_out` in \\(0, 1\\), got 2, 1.0"),
        ({"max_texts": 1}, "`max_texts` must be 2 or more"),
        ({"texts": ROWS[:4]}, "'en' has 1 text with a token that counts"),
        ({"tokenizer": None}, "Pass `tokenizer=`"),
    ],
)
def test_call_that_cannot_work_is_answered_with_what_to_do(find, settings, message):
    with pytest.raises(ValueError, match=message):
        find(random_sae(1), **settings)


def test_block_that_the_model_or_the_files_lack_is_named(model, tokenizer, find, tmp_path):
    with pytest.raises(ValueError, match="The SAE reads block 2, the model has blocks 0 to 1"):
        find(random_sae(2))
    save_qwen_scope(random_sae(1), tmp_path)
    with pytest.raises(FileNotFoundError, match="no SAE of block 5.*it has blocks 1"):
        find(tmp_path, blocks=[5], k=4)
    with pytest.raises(ValueError, match="Say which `blocks` to look at"):
        find(tmp_path, k=4)


def test_every_block_needs_one_sae(find, tmp_path):
    with pytest.raises(ValueError, match=r"Give one SAE for each block of \[0, 1\]; these read block 0"):
        find([random_sae(0)], blocks=[0, 1])
    with pytest.raises(ValueError, match=r"Give one SAE for each block of \[1\]; these read block 1, block 1"):
        find([random_sae(1), random_sae(1)])
    with pytest.raises(ValueError, match=r"`blocks` names a block more than once: \[1, 1\]"):
        find(tmp_path, blocks=[1, 1])
    with pytest.raises(ValueError, match="got 2 for the blocks"):
        find([tmp_path, tmp_path], blocks=[0])
    with pytest.raises(ValueError, match="loaded SAEs or paths of SAEs, not both"):
        find([random_sae(0), tmp_path], blocks=[0, 1])


def test_sae_of_another_width_is_refused(find):
    sae = random_sae(1)
    narrow = replace(sae, W_enc=sae.W_enc[:16], W_dec=sae.W_dec[:, :16], b_dec=sae.b_dec[:16])
    with pytest.raises(ValueError, match="The SAE reads width 16, block 1 writes 32; was it trained on this model"):
        find(narrow)


def test_site_that_the_model_does_not_have_or_of_another_width_is_refused(find):
    at_heads = replace(random_sae(1), site="mlp.down_proj.input")
    with pytest.raises(ValueError, match="The SAE reads width 32, mlp.down_proj.input of block 1 has 48; was it"):
        find(at_heads)
    with pytest.raises(ValueError, match="Block 1 has no module 'post_feedforward_layernorm'; it has self_attn, mlp"):
        find(replace(at_heads, site="post_feedforward_layernorm.output"))


def test_saes_of_two_widths_are_refused_before_any_text_is_read(model, find):
    wide = random_sae(1, site="mlp.down_proj.input")
    wide = replace(wide, W_enc=torch.randn(48, 24), W_dec=torch.randn(24, 48), b_dec=torch.zeros(48))
    with pytest.raises(
        ValueError, match="features of one width, these SAEs read 32 at block 1, 48 at mlp.down_proj.inp"
    ):
        find([random_sae(1), wide])


def test_sae_whose_directions_were_left_in_its_file_is_refused(find):
    with pytest.raises(ValueError, match="The directions of layer1.sae.pt were left"):
        find(replace(random_sae(1), W_dec=None))


def test_topk_without_k_is_answered_with_how_to_give_it(find):
    with pytest.raises(ValueError, match=r"how many features are active per token.*k=50"):
        find(random_sae(1, activation="topk"))


def test_no_feature_of_the_target_is_an_error(find):
    silent = replace(random_sae(1), b_enc=torch.full((NUM_FEATURES,), -1e6))
    with pytest.raises(ValueError, match="No feature fires more on the target group than on every other. Try another"):
        find(silent)


# A real model --------------------------------------------------------------------------------------------------------


def test_help_model_has_a_feature_of_chinese(help_folder):
    texts = []
    for file in sorted((help_folder / "data/help").glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            texts += [json.loads(line) for line in islice(lines, 12)]
    path = help_folder / "models/help-qwen3-7m"
    found = find_features(
        str(path), path / "sae", texts, target_group="zh", blocks=[5], text_options=TextOptions(max_length=64), k=32
    )
    assert found.scores["auroc"][0] > 0.9
    assert found.scores["firing_rate"][0] > 0.1 > found.scores["firing_rate_elsewhere"][0]


@pytest.mark.parametrize("swapped", [ROWS, "texts.jsonl.gz", Path("texts.csv"), ["one.parquet"]])
def test_texts_in_the_place_of_the_sae_are_refused_by_name(swapped):
    with pytest.raises(ValueError, match=r"give `\(model, sae, texts\)`.*texts stand in the place of the SAE"):
        find_features("no-model", swapped, "owner/sae", target_group="zh", blocks=[0])


def test_an_sae_in_the_place_of_the_texts_is_refused_by_name():
    with pytest.raises(ValueError, match="an SAE stands in the place of the texts"):
        find_features("no-model", "owner/texts", [random_sae(0)], target_group="zh")
