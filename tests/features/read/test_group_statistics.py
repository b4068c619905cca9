import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_posttrain import FeatureSet, FrozenSAE, find_features
from sae_posttrain.features.controls.random_directions import random_directions
from sae_posttrain.features.read.group_statistics import measure_groups
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.saes.stored.source import SAESource

ALPHABETS = {"zh": "qxzjkv", "en": "aeioun", "ko": "tslrdm"}


def make_rows(form: str = "text", num: int = 6) -> list[dict]:
    letters = random.Random(0)
    texts = [
        (group, "".join(letters.choices(alphabet, k=20 + 3 * i)))
        for i in range(num)
        for group, alphabet in ALPHABETS.items()
    ]
    question = {"role": "user", "content": "what?"}
    return {
        "text": [{"lang": group, "text": text} for group, text in texts],
        "messages": [
            {"lang": group, "messages": [question, {"role": "assistant", "content": text}]} for group, text in texts
        ],
        "completion": [{"lang": group, "prompt": "what?", "completion": text} for group, text in texts],
    }[form]


def make_sae(block: int, site: str = "resid_post") -> FrozenSAE:
    normal = torch.Generator().manual_seed(block)
    return FrozenSAE(
        W_enc=torch.randn(32, 24, generator=normal) / 4,
        b_enc=torch.randn(24, generator=normal) / 4,
        W_dec=torch.randn(24, 32, generator=normal),
        b_dec=torch.zeros(32),
        activation="relu",
        block=block,
        site=site,
        source=SAESource("owner/sae", "c" * 40, f"layer{block}.sae.pt", "qwen_scope", Path("not here")),
    )


@pytest.mark.parametrize("form", ["text", "messages", "completion"])
def test_features_of_an_sae_read_as_the_search_measured_them(make_model, tokenizer, form):
    settings = {
        "tokenizer": tokenizer,
        "text_options": TextOptions(batch_size=4, max_texts=5, max_length=30),
        "seed": 2,
    }
    model, rows = make_model(), make_rows(form)
    saes = [make_sae(1), make_sae(0), make_sae(1, "mlp_out")]
    found = find_features(model, saes, rows, target_group="zh", num_features=3, **settings)
    bare = replace(
        found,
        groups=(),
        mean=torch.zeros(len(found), 0),
        std=torch.zeros(len(found), 0),
        residual_norms=torch.full((len(found),), math.nan),
    )
    mixed = [*range(1, len(found), 2), *range(0, len(found), 2)]  # the features of a place do not stand together
    for given, expected in ((bare, found), (bare[mixed], found[mixed])):
        measured = measure_groups(model, given, rows, **settings)
        assert (measured.groups, measured.target_groups) == (found.groups, ("zh",))
        for name in ("mean", "std", "residual_norms"):
            torch.testing.assert_close(getattr(measured, name), getattr(expected, name))


def test_all_texts_count_where_none_is_held_out(make_model, make_features, tokenizer):
    model, rows = make_model().eval(), make_rows()
    features = make_features(blocks=(1,))
    measured = measure_groups(model, features, rows, tokenizer=tokenizer, held_out=0)
    seen = []
    with torch.no_grad(), model.model.layers[1].register_forward_hook(lambda _m, _a, output: seen.append(output)):
        for row in rows:
            if row["lang"] == "ko":
                model(torch.tensor([tokenizer(row["text"])["input_ids"]]))
    pre = features.pre_activations(torch.cat([value[0, 1:] for value in seen]))
    column = measured.groups.index("ko")
    torch.testing.assert_close(measured.mean[:, column], pre.mean(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(measured.std[:, column], pre.std(dim=0, correction=0), rtol=1e-3, atol=1e-4)


def test_random_directions_get_statistics_and_a_target(make_model, make_features, tokenizer, tmp_path):
    control = random_directions(make_features(), seed=0)
    rows = [{"register": {"zh": "formal"}.get(row["lang"], "plain"), "text": row["text"]} for row in make_rows()]
    settings = {"tokenizer": tokenizer, "text_options": TextOptions(group_column="register")}
    measured = measure_groups(make_model(), control, rows, target_group="formal", **settings)
    assert (measured.groups, measured.target_groups) == (("formal", "plain"), ("formal",))
    assert measured.std.min() > 0
    assert torch.equal(measured.directions, control.directions)
    loaded = FeatureSet.load(measured.save(tmp_path))
    assert torch.equal(loaded.mean, measured.mean)


def test_measuring_leaves_the_model_as_it_was(make_model, make_features, tokenizer):
    model = make_model().train()
    measure_groups(model, make_features(), make_rows(), tokenizer=tokenizer)
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_what_cannot_be_measured_is_refused(make_model, make_features, tokenizer):
    def measure(features=None, rows=None, **settings):
        features = make_features() if features is None else features
        return measure_groups(
            make_model(), features, make_rows() if rows is None else rows, tokenizer=tokenizer, **settings
        )

    with pytest.raises(ValueError, match="No text belongs to the target group 'ja'; the groups are en, ko, zh"):
        measure(target_group="ja")
    with pytest.raises(ValueError, match="Row 1 of the texts has no group column `language`; it has lang, text"):
        measure(text_options=TextOptions(group_column="language"))
    with pytest.raises(ValueError, match="There are no texts"):
        measure(rows=[])
    with pytest.raises(ValueError, match=r"`held_out` must be in \[0, 1\), got 1"):
        measure(held_out=1)
    with pytest.raises(ValueError, match="The features read block 7, the model has blocks 0 to 1"):
        measure(make_features(blocks=(7,)))
