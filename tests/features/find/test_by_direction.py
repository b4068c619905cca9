import logging
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cosine_similarity

import sae_posttrain
from sae_posttrain import FeatureSet, FrozenSAE, SASFTConfig, SASFTTrainer, find_features
from sae_posttrain.features.controls.matched_random import matched_random_features
from sae_posttrain.features.controls.random_directions import random_directions
from sae_posttrain.features.find.by_direction import find_directions, group_differences
from sae_posttrain.features.read.group_statistics import measure_groups
from sae_posttrain.features.read.grouped_texts import GroupedTexts
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.saes.stored.source import SAESource

ALPHABETS = {"zh": "qxzjkv", "en": "aeioun", "ko": "tslrdm"}
PLACE = {"blocks": [0], "site": "resid_pre"}


def make_rows(num: int = 10) -> list[dict[str, str]]:
    letters = random.Random(0)
    return [
        {"lang": group, "text": "".join(letters.choices(alphabet, k=20 + 3 * i))}
        for i in range(num)
        for group, alphabet in ALPHABETS.items()
    ]


ROWS = make_rows()


@pytest.fixture(scope="module")
def planted() -> torch.Tensor:
    """A direction that the tokens of the target group have in common, all coordinates of one size."""
    return torch.randn(32, generator=torch.Generator().manual_seed(7)).sign()


@pytest.fixture
def model(make_model, tokenizer, planted):
    model = make_model().eval()
    own = tokenizer(ALPHABETS["zh"])["input_ids"]
    with torch.no_grad():
        model.model.embed_tokens.weight[own] += planted
    return model


@pytest.fixture
def find(model, tokenizer):
    def call(method: str, rows=ROWS, *, target_group: str = "zh", **settings) -> FeatureSet:
        settings = {"tokenizer": tokenizer, "text_options": TextOptions(batch_size=8), **PLACE} | settings
        return find_directions(model, rows, method=method, target_group=target_group, **settings)

    return call


@pytest.fixture
def sae(planted) -> FrozenSAE:
    """Random features, one of which reads the planted direction."""
    normal = torch.Generator().manual_seed(3)
    W_enc, b_enc = torch.randn(32, 60, generator=normal) / 4, torch.randn(60, generator=normal) / 4
    W_enc[:, 17], b_enc[17] = planted / 2, -2.0
    return FrozenSAE(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_enc.T,
        b_dec=torch.zeros(32),
        activation="relu",
        block=0,
        site="resid_pre",
        source=SAESource("owner/sae", None, "sae", "by hand", Path(__file__)),
    )


def counted(model, tokenizer, rows=ROWS, site: str = "resid_pre") -> dict[str, torch.Tensor]:
    """What stands at the tokens that count of the texts that are not held out, by group."""
    texts = GroupedTexts.divide(rows, tokenizer, TextOptions(batch_size=8), held_out=0.2, seed=0).kept
    embed = model.model.embed_tokens
    return {
        group: torch.cat([embed(torch.tensor(text.ids))[1:] for text in texts if text.group == group]).detach()
        for group in ALPHABETS
    }


# Difference of means and probe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["difference_of_means", "probe"])
def test_planted_direction_is_recovered(find, planted, method):
    found = find(method)
    assert cosine_similarity(found.directions[0], planted, dim=0) > 0.9
    assert found.scores["auroc"].tolist() == [1.0]
    assert found.scores["auroc_tokens"][0] > 0.99
    zh = found.groups.index("zh")
    assert all(found.mean[0, zh] > found.mean[0, other] for other in range(3) if other != zh)
    assert (found.target_groups, found.names) == (("zh",), (f"zh.{method}.0.resid_pre",))
    assert found.notes["method"] == method
    assert found.notes["num_texts"] == {"en": 8, "ko": 8, "zh": 8}


def test_planted_direction_is_not_that_of_matched_random_features(model, tokenizer, planted, sae):
    settings = {"tokenizer": tokenizer, "text_options": TextOptions(batch_size=8)}
    found = find_features(model, sae, ROWS, target_group="zh", num_features=1, **settings)
    assert found.feature_ids == (17,)
    for seed in range(5):
        control = matched_random_features(model, found, sae, ROWS, seed=seed, **settings)
        assert cosine_similarity(control.directions[0], planted, dim=0).abs() < 0.5


def test_difference_is_that_of_the_group_means_and_reads_one_at_the_target(find, model, tokenizer):
    found = find("difference_of_means")
    means = {group: values.mean(dim=0) for group, values in counted(model, tokenizer).items()}
    others = (means["en"] + means["ko"]) / 2
    torch.testing.assert_close(found.directions[0], means["zh"] - others)
    read = found.pre_activations(torch.stack([means["zh"], others]))
    torch.testing.assert_close(read[:, 0], torch.tensor([1.0, 0.0]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.mean[0, found.groups.index("zh")], torch.tensor(1.0))


def test_difference_from_each_other_group(find, model, tokenizer):
    found = find("difference_of_means", num_directions=2)
    means = {group: values.mean(dim=0) for group, values in counted(model, tokenizer).items()}
    prefix = "zh.difference_of_means.0.resid_pre"
    assert found.names == (f"{prefix}.en", f"{prefix}.ko")
    for row, group in enumerate(("en", "ko")):
        torch.testing.assert_close(found.directions[row], means["zh"] - means[group])
        at_start = found.mean[row, found.groups.index(group)]
        torch.testing.assert_close(at_start, torch.tensor(0.0), rtol=0, atol=1e-5)


def test_groups_weigh_the_same_in_the_mean_of_the_others():
    means = torch.tensor([[1.0, 0.0], [3.0, 2.0], [10.0, 10.0]])
    difference, start = group_differences(means, target=2)
    assert (difference.tolist(), start.tolist()) == ([[8.0, 9.0]], [[2.0, 1.0]])
    difference, start = group_differences(means, target=0, each=True)
    assert (difference.tolist(), start.tolist()) == ([[-2.0, -2.0], [-9.0, -10.0]], means[1:].tolist())


def test_pre_activation_of_a_probe_is_the_logit_and_its_direction_raises_it_by_one(find, model, tokenizer):
    found = find("probe", num_directions=3, l2=0.01)
    assert found.names[2] == "zh.probe.0.resid_pre.2"
    values = counted(model, tokenizer)
    read = {group: found.pre_activations(value) for group, value in values.items()}
    assert read["zh"][:, 0].min() > 0 > max(read["en"][:, 0].max(), read["ko"][:, 0].max())
    torch.testing.assert_close((found.encoder_rows * found.directions).sum(dim=1), torch.ones(3))
    unit = torch.nn.functional.normalize(found.encoder_rows, dim=1)
    torch.testing.assert_close(unit @ unit.T, torch.eye(3), rtol=0, atol=1e-5)
    for column, group in enumerate(found.groups):
        torch.testing.assert_close(found.mean[:, column], read[group].mean(dim=0), rtol=1e-3, atol=1e-3)


def test_probe_is_fitted_on_no_more_tokens_than_allowed(find, monkeypatch):
    fitted = []

    def fit(x, positive, weight, num, *, l2):
        fitted.append((len(x), int(positive.sum()), num, l2))
        return torch.ones(num, 32), torch.zeros(num)

    monkeypatch.setattr("sae_posttrain.features.find.by_direction.fit_probes", fit)
    find("probe", blocks=[0, 1], max_tokens=80)
    assert fitted == [(80, 40, 1, 1e-3)] * 2


def test_same_seed_gives_the_same_probe_and_another_seed_other_tokens(find):
    one, same, other = (find("probe", max_tokens=60, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.directions, same.directions)
    assert not torch.equal(one.directions, other.directions)


def test_several_blocks_and_sites_are_searched_at_once(find, model):
    found = find("difference_of_means", blocks=[1, 0], site="mlp_out")
    assert found.places == ((0, "mlp_out"), (1, "mlp_out"))
    assert found.residual_norms.min() > 0
    found.check_model(model)


def test_any_label_can_be_the_group(find, planted):
    rows = [{"kind": "slang" if row["lang"] == "zh" else "plain", "text": row["text"]} for row in ROWS]
    found = find("difference_of_means", rows, target_group="slang", text_options=TextOptions(group_column="kind"))
    assert cosine_similarity(found.directions[0], planted, dim=0) > 0.9
    assert (found.groups, found.target_groups) == (("plain", "slang"), ("slang",))


def test_what_cannot_be_found_is_refused(find):
    with pytest.raises(ValueError, match="`method` must be one of 'difference_of_means', 'probe', got 'pca'"):
        find("pca")
    with pytest.raises(ValueError, match="`l2` belongs to the method 'probe'"):
        find("difference_of_means", l2=1.0)
    with pytest.raises(ValueError, match="1 direction .from their mean. or 2 .from each.; `num_directions` is 5"):
        find("difference_of_means", num_directions=5)
    with pytest.raises(
        ValueError, match=r"`blocks` must name decoder blocks, counted from 0, each once; got \[0, 0\]"
    ):
        find("probe", blocks=[0, 0])
    with pytest.raises(ValueError, match="`num_directions` must be 1 or more and `held_out` in"):
        find("probe", held_out=0)
    with pytest.raises(ValueError, match="`max_tokens` must be 4 or more for these groups, got 3"):
        find("probe", max_tokens=3)
    with pytest.raises(ValueError, match="No text belongs to the target group 'ja'"):
        find("probe", target_group="ja")
    with pytest.raises(ValueError, match="All texts belong to 'zh'. Add texts of other groups"):
        find("probe", [row for row in ROWS if row["lang"] == "zh"])
    with pytest.raises(ValueError, match="block"):
        find("probe", blocks=[9])
    same = [{"lang": group, "text": text} for group in ALPHABETS for text in ("qxzj", "jzxq", "zqxj")]
    with pytest.raises(ValueError, match="The means of the groups at resid_pre of block 0 are equal"):
        find("difference_of_means", same)


FIND_IN_ONE_PROCESS = """
import sys
import torch
from accelerate import PartialState
from sae_posttrain.features.find.by_direction import find_directions
torch.set_num_threads(1)
state = PartialState(cpu=True)
inputs = torch.load(sys.argv[1] + "/inputs.pt", weights_only=False)
for method, num in (("difference_of_means", 2), ("probe", 3)):
    found = find_directions(**inputs, method=method, num_directions=num)
    found.save(f"{sys.argv[1]}/{method}{state.process_index}.safetensors")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_find_what_one_finds(find, model, tokenizer, tmp_path):
    inputs = {
        "model": model,
        "texts": ROWS,
        "target_group": "zh",
        "tokenizer": tokenizer,
        "text_options": TextOptions(batch_size=8),
        **PLACE,
    }
    torch.save(inputs, tmp_path / "inputs.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = str(Path(sae_posttrain.__file__).parents[1])
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": root}
    shared |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-c", FIND_IN_ONE_PROCESS, str(tmp_path)]
    running = [subprocess.Popen(command, env=shared | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    try:
        assert [process.wait(timeout=240) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    for method, num in (("difference_of_means", 2), ("probe", 3)):
        alone = find(method, num_directions=num)
        first, second = (FeatureSet.load(tmp_path / f"{method}{rank}.safetensors") for rank in (0, 1))
        for name in ("encoder_rows", "encoder_bias", "directions", "mean", "std"):
            assert getattr(first, name).equal(getattr(second, name)), name  # the processes agree to the bit
            torch.testing.assert_close(getattr(first, name), getattr(alone, name), rtol=1e-2, atol=1e-3)


# In training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def every_set(find, model, tokenizer, sae) -> dict[str, FeatureSet]:
    settings = {"tokenizer": tokenizer, "text_options": TextOptions(batch_size=8)}
    features = find_features(model, sae, ROWS, target_group="zh", num_features=2, **settings)
    where = {"blocks": [0, 1], "site": "resid_post"}
    differences = find("difference_of_means", num_directions=2, **where)
    return {
        "difference_of_means": differences,
        "probe": find("probe", num_directions=4, **where),
        "random": measure_groups(model, random_directions(differences, 0), ROWS, target_group="zh", **settings),
        "matched": matched_random_features(model, features, sae, ROWS, **settings),
    }


def test_sasft_trains_with_each_of_them_from_its_file(every_set, make_model, tokenizer, tmp_path, caplog):
    data = Dataset.from_list([{"lang": row["lang"], "prompt": "say: ", "completion": row["text"]} for row in ROWS[:6]])
    caplog.set_level(logging.ERROR)
    for name, feature_set in every_set.items():
        config = SASFTConfig(
            str(tmp_path / name),
            features=str(feature_set.save(tmp_path / f"{name}.safetensors")),
            penalty_weight=2.0,
            max_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        trainer = SASFTTrainer(make_model(), config, train_dataset=data, processing_class=tokenizer)
        trainer.train()
        logged = next(row for row in trainer.state.log_history if "loss" in row)
        assert logged["sae/penalty"] > 0, name
