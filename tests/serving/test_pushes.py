import pytest
import torch

from sae_posttrain import FeatureSet
from sae_posttrain.hooks.record import record_blocks
from sae_posttrain.hooks.steer import steer
from sae_posttrain.serving.pushes import block_vectors, fingerprint, pushes_of, read_spec


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (0.8, {"": 0.8}),
        ("-2", {"": -2.0}),
        ("loop=-0.8", {"loop": -0.8}),
        ("loop = -0.8, set/zh=1", {"loop": -0.8, "set/zh": 1.0}),
        ("a=b=3", {"a=b": 3.0}),
        ('{"a, b": 1, "c=": -0.5}', {"a, b": 1.0, "c=": -0.5}),
    ],
)
def test_strengths_are_read_as_they_are_written(spec, found):
    assert read_spec(spec) == found


@pytest.mark.parametrize(
    "spec",
    [
        *("", "fast", "loop", "loop=", "=1", "loop=1,loop=2", "loop=nan", "inf", "{", "{}", "[1]"),
        *('{"a": true}', '{"a": "x"}', '{"": 1}', True, None, [1.0], float("nan")),
    ],
)
def test_what_is_no_strength_is_an_error_that_shows_how_to_write_it(spec):
    with pytest.raises(ValueError, match="Write a number"):
        read_spec(spec)


def test_names_stand_for_features_sets_and_features_of_sets(make_set):
    pushes = pushes_of({"a": make_set(), "b": make_set(names=("zh", "ko"), seed=1)})
    assert [(push.set_name, push.name) for push in pushes.pushes] == [
        ("a", "loop"),
        ("a", "zh"),
        ("b", "zh"),
        ("b", "ko"),
    ]
    assert pushes.of("loop=2") == [2.0, 0.0, 0.0, 0.0]
    assert pushes.of("b=2") == [0.0, 0.0, 2.0, 2.0]
    assert pushes.of("a/zh=1, b=-1") == [0.0, 1.0, -1.0, -1.0]
    assert pushes.of(3, "b") == [0.0, 0.0, 3.0, 3.0]
    assert pushes.of("zh=3", "b") == [0.0, 0.0, 3.0, 0.0]
    with pytest.raises(ValueError, match="not one thing here. Write it in full, such as a/zh, b/zh"):
        pushes.of("zh=1")
    with pytest.raises(ValueError, match="several feature sets: a, b. Say which: a=0.8"):
        pushes.of(1)


def test_a_name_that_is_all_of_its_set_may_be_the_sets_name_too(make_set):
    pushes = pushes_of({"loop": make_set(names=("loop",), blocks=(0,))})
    assert pushes.of("loop=2") == [2.0]
    pushes = pushes_of({"loop": make_set()})
    with pytest.raises(ValueError, match="not one thing here"):
        pushes.of("loop=2")


def test_features_that_share_a_name_are_one_vector_a_block(make_set):
    same = make_set(names=("x", "x", "y"), blocks=(0, 0, 1))
    vectors = block_vectors(same)
    unit = same.directions / same.directions.norm(dim=1, keepdim=True)
    assert torch.allclose(vectors[0], torch.stack([2 * unit[0] + 2 * unit[1], torch.zeros(8)]))
    assert torch.allclose(vectors[1][1], 2 * unit[2])
    assert torch.allclose(block_vectors(same, "raw")[1][1], unit[2])


def test_the_input_of_a_block_is_the_output_of_the_one_before(make_set):
    before = make_set(names=("x",), blocks=(2,), sites=("resid_pre",))
    after = make_set(names=("x",), blocks=(1,))
    assert torch.equal(block_vectors(before)[1], block_vectors(after)[1])
    for site, block in (("resid_pre", 0), ("mlp_out", 1), ("self_attn.output", 1)):
        refused = make_set(names=("x",), blocks=(block,), sites=(site,))
        with pytest.raises(ValueError, match=f"{site} of block {block}.*generate with transformers"):
            block_vectors(refused)


def test_vectors_are_those_that_steer_adds(make_model):
    model = make_model()
    features = FeatureSet.from_directions(
        torch.randn(2, 32), blocks=[1, 1], names=["a", "b"], residual_norms=[3.0, 3.0]
    )
    ids = torch.tensor([[5, 6, 7]])
    outputs = []
    for strength in ([[0.0, 0.0]], [[1.5, -0.5]]):
        with steer(model, features, strength=torch.tensor(strength), positions="all"):
            with record_blocks(model, [1]) as recorded:
                model(ids)
        outputs.append(recorded[1][0])
    vectors = block_vectors(features)[1]
    pushed = (1.5 * vectors[0] - 0.5 * vectors[1]).expand(1, 3, -1)
    assert torch.allclose(outputs[1] - outputs[0], pushed, atol=1e-5)


def test_the_fingerprint_tells_what_changes_the_push(make_set):
    known = fingerprint(make_set())
    assert fingerprint(make_set()) == known
    others = [make_set(seed=1), make_set(names=("a", "b")), make_set(blocks=(0, 2)), make_set(norm=3.0)]
    assert len({known, fingerprint(make_set(), "raw"), *map(fingerprint, others)}) == 6
    assert fingerprint(make_set(norm=3.0), "raw") == fingerprint(make_set(), "raw")


def test_sets_that_do_not_go_together_are_refused(make_set):
    wide = FeatureSet.from_directions(torch.randn(1, 9), blocks=[0], names=["w"], residual_norms=[1.0])
    with pytest.raises(ValueError, match="different widths: {'a': 8, 'b': 9}"):
        pushes_of({"a": make_set(), "b": wide})
    with pytest.raises(ValueError, match="no feature set"):
        pushes_of({})
    with pytest.raises(ValueError, match="`unit` must be one of 'norm', 'raw'"):
        fingerprint(make_set(), "std")
