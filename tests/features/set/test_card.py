"""The card of a feature set says what is in it and whose it is, whatever names say."""

from dataclasses import replace

import pytest
import yaml

from sae_posttrain.features.set import card as cards
from sae_posttrain.features.set.card import dashboard, feature_card
from sae_posttrain.features.set.source import FeatureSource


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr(cards, "stated_licence", lambda repository, revision: "cc-by-4.0")


def test_card_shows_features_scores_statistics_and_licence(make_features):
    features = replace(make_features(), base_model="google/gemma-2-2b", notes={"rank_by": "output", "command": "a b"})
    source = FeatureSource("google/gemma-scope-2b-pt-res", "f" * 40, "gemma_scope", "layer_24/width_16k/x.npz")
    features = replace(features, sources=(source,) * len(features))
    card = feature_card(features, "me/zh", has_picture=True)
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "sae_posttrain" and metadata["base_model"] == ["google/gemma-2-2b"]
    assert "# zh\n" in card and "![" in card and "FeatureSet.from_pretrained('me/zh')" in card
    for name in features.names:
        assert f"| `{name}` |" in card
    for group in features.groups:
        assert f"mean on `{group}`" in card
    assert "`cc-by-4.0`" in card and "share these features" in card
    assert "\n    a b\n" in card and '| `rank_by` | `"output"` |' in card


def test_card_of_bare_directions_says_so(make_features):
    bare = make_features(groups=())
    card = feature_card(bare, "me/bare", has_picture=False)
    assert "![" not in card and "mean on" not in card


def test_names_cannot_write_markdown(make_features):
    features = make_features()
    features = replace(features, names=("a | b`<script>", *features.names[1:]), base_model="x\ny: z")
    card = feature_card(features, "me/zh", has_picture=False)
    assert "| `a ¦ b'<script>` |" in card
    assert list(yaml.safe_load(card.split("---")[1])) == ["library_name", "tags"]


@pytest.mark.parametrize(
    ("repository", "file", "page"),
    [
        ("fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L30R-8x/checkpoints/final.safetensors",
         "llama3.1-8b/30-llamascope-res-32k/7"),
        ("google/gemma-scope-2b-pt-res", "layer_24/width_16k/average_l0_73/params.npz",
         "gemma-2-2b/24-gemmascope-res-16k/7"),
        ("google/gemma-scope-2b-pt-res", "layer_24/width_16k/average_l0_20/params.npz", None),
        ("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "layer26.sae.pt", None),
        ("somebody/else", "layer_24/width_16k/average_l0_73/params.npz", None),
    ],
)  # fmt: skip
def test_dashboards_are_linked_where_they_show_this_very_sae(repository, file, page):
    assert dashboard(repository, file, 7) == (page and f"https://www.neuronpedia.org/{page}")
