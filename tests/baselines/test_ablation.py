import pytest
import torch

from sae_posttrain import FeatureSet, evaluate, steer
from sae_posttrain.baselines.ablation import ablate
from sae_posttrain.hooks.record import record_blocks

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@torch.no_grad()
def residuals(model, block: int) -> torch.Tensor:
    with record_blocks(model, [block]) as records:
        model(IDS)
    return records[block][0]


def components(values: torch.Tensor, features: FeatureSet, block: int) -> torch.Tensor:
    own = features.select(block=block).directions
    return values @ (own / own.norm(dim=1, keepdim=True)).T


@pytest.mark.parametrize("per_block", [1, 3])
def test_no_direction_is_left_at_its_site_also_of_several_at_an_angle(make_model, make_features, per_block):
    model, features = make_model(), make_features(per_block=per_block)
    for block in (0, 1):
        assert components(residuals(model, block), features, block).abs().max() > 0.1
        with ablate(model, features, positions="all"):
            assert components(residuals(model, block), features, block).abs().max() < 1e-4


def test_only_the_span_of_the_directions_is_taken_out(make_model, make_features):
    model, features = make_model(), make_features(blocks=(1,), per_block=3)
    before = residuals(model, 1)
    with ablate(model, features, positions="all"):
        after = residuals(model, 1)
    basis = torch.linalg.qr(features.directions.T).Q
    assert torch.allclose(after, before - before @ basis @ basis.T, atol=1e-4)


def test_directions_that_lie_in_one_plane_count_once(make_model, make_features):
    model, features = make_model(), make_features(blocks=(1,), per_block=2)
    first, second = features.directions
    three = FeatureSet.from_directions(
        torch.stack([first, second, first - 2 * second]), blocks=[1, 1, 1], names=["a", "b", "sum"]
    )
    with ablate(model, features, positions="all"):
        expected = residuals(model, 1)
    with ablate(model, three, positions="all"):
        assert torch.allclose(residuals(model, 1), expected, atol=1e-4)


def test_rows_that_may_use_the_direction_are_left_alone(make_model, make_features):
    model, features = make_model(), make_features()
    with torch.no_grad():
        plain = model(IDS).logits
        with ablate(model, features, rows=[True, False]):
            changed = model(IDS).logits
    assert torch.equal(changed[1], plain[1])
    assert torch.equal(changed[0, :-1], plain[0, :-1])  # the prompt is read as it is
    assert not torch.allclose(changed[0, -1], plain[0, -1], atol=1e-2)


def test_subtracting_a_fixed_length_is_steering_with_a_negative_strength(make_model, make_features):
    """SASFT's own check, x' = x - strength · norm · d / ‖d‖: nothing to add to `steer`."""
    model, features = make_model(), make_features(blocks=(1,), per_block=1)
    before = residuals(model, 1)
    with steer(model, features, strength=-0.5, positions="all"):
        after = residuals(model, 1)
    push = 0.5 * features.residual_norms[0] * features.directions[0] / features.directions[0].norm()
    assert torch.allclose(after, before - push, atol=1e-5)


def test_answers_are_evaluated_under_ablation_and_the_model_is_as_before_afterwards(
    make_model, make_features, tokenizer, tmp_path
):
    model, features = make_model(), make_features()
    prompts = [{"id": i, "lang": "ko", "prompt": f"{i}"} for i in range(3)]
    settings = {"tokenizer": tokenizer, "max_new_tokens": 4, "batch_size": 2, "temperature": 0.0}
    plain = residuals(model, 1)
    with ablate(model, features):
        evaluate(model, prompts, output_dir=tmp_path, **settings)  # two batches of different sizes
    assert torch.equal(residuals(model, 1), plain)


def test_zero_direction_and_untouched_model_are_refused(make_model, make_features):
    features = make_features(blocks=(1,), per_block=1)
    features.directions.zero_()
    with pytest.raises(ValueError, match="A direction at block 1 is zero"), ablate(make_model(), features):
        pass
    with pytest.raises(ValueError, match="nothing was steered"), ablate(make_model(), make_features()):
        pass
