from itertools import islice

import pytest
import torch

from sae_posttrain.features.read.texts import tokenize
from sae_posttrain.hooks.record import record_blocks
from sae_posttrain.sae_training.activations import num_counted
from sae_posttrain.sae_training.buffer import ActivationBuffer

PLACES = [(0, "resid_post"), (1, "resid_post")]


def outputs_of(model, texts, block):
    """What a block writes on the tokens that count, a text at a time: nothing is padded."""
    rows = []
    for text in texts:
        with torch.no_grad(), record_blocks(model, [block]) as outputs:
            model(input_ids=torch.tensor([text.ids]))
        rows.append(outputs[block][0][0][torch.tensor(text.counted)])
    return torch.cat(rows)


def nearest(rows, known):
    """Which known token each row is, and how far away it is."""
    distance, which = torch.cdist(rows, known, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    assert distance.max() < 1e-3
    return which


def batches(model, texts, **options):
    defaults = {"batch_size": 8, "buffer_tokens": 32, "texts_per_pass": 2, "seed": 0}
    return ActivationBuffer(model, texts, PLACES, **{**defaults, **options})


def one_round(model, texts):
    """Every token once: all of them fit into the buffer."""
    stream = batches(model, texts, batch_size=1, buffer_tokens=1000)
    return torch.cat([batch[1, "resid_post"] for batch in islice(stream, num_counted(texts))])


def test_tokens_that_count_are_read_and_no_padding(make_model, texts):
    model = make_model().eval()
    which = nearest(one_round(model, texts), outputs_of(model, texts, 1))
    assert sorted(which.tolist()) == list(range(num_counted(texts)))


def test_special_tokens_and_first_positions_are_left_out(make_model, tokenizer):
    [text] = tokenize([{"text": "ab<|end|>c", "lang": ""}], tokenizer)
    model = make_model().eval()
    with torch.no_grad(), record_blocks(model, [1]) as outputs:
        model(input_ids=torch.tensor([text.ids]))
    which = nearest(one_round(model, [text]), outputs[1][0][0])
    assert sorted(which.tolist()) == [1, 3]


def test_batches_are_float32_and_a_row_is_the_same_token_at_all_places(make_model, texts):
    model = make_model().eval().to(torch.bfloat16)
    known = {place: outputs_of(model, texts, place[0]).float() for place in PLACES}
    for batch in islice(batches(model, texts), 6):
        assert batch[PLACES[0]].dtype == torch.float32
        assert batch[PLACES[0]].shape == (8, 32)
        first, second = (torch.cdist(batch[place], known[place]).argmin(dim=1) for place in PLACES)
        assert first.tolist() == second.tolist()


def test_texts_that_fit_are_read_once_and_every_token_comes_in_each_round(make_model, texts):
    model = make_model().eval()
    known = outputs_of(model, texts, 0)
    num_passes = count_passes(model)
    stream = batches(model, texts, batch_size=4, buffer_tokens=1000)
    per_round = len(known) // 4
    rounds = [
        torch.cat([nearest(batch[0, "resid_post"], known) for batch in islice(stream, per_round)]) for _ in range(3)
    ]
    for order in rounds:
        assert len(set(order.tolist())) == per_round * 4  # all but the fewer than 4 that fill no batch
    assert rounds[0].tolist() != rounds[1].tolist()
    assert num_passes() == 4  # seven texts, two at a time


def test_a_smaller_buffer_is_filled_again_by_half_and_no_text_is_forgotten(make_model, texts):
    model = make_model().eval()
    known = outputs_of(model, texts, 0)
    num_passes = count_passes(model)
    stream = batches(model, texts, batch_size=8, buffer_tokens=32)
    next(stream)
    assert num_passes() < 4  # the first batch waits for 32 tokens, not for all
    seen = torch.cat([nearest(batch[0, "resid_post"], known) for batch in islice(stream, 60)])
    counts = torch.bincount(seen, minlength=len(known))
    assert counts.min() >= 1
    assert counts.float().std() < counts.float().mean()  # 60 batches go over the texts four times


def test_a_batch_mixes_tokens_of_several_texts(make_model, texts):
    model = make_model().eval()
    owner = torch.cat([torch.full((sum(text.counted),), i) for i, text in enumerate(texts)])
    known = outputs_of(model, texts, 0)
    batch = next(batches(model, texts, buffer_tokens=100, batch_size=16))
    assert len(set(owner[nearest(batch[0, "resid_post"], known)].tolist())) >= 3


def test_order_depends_on_the_seed_alone(make_model, texts):
    model = make_model().eval()
    first, again, other = (
        torch.cat([batch[0, "resid_post"] for batch in islice(batches(model, texts, seed=seed), 12)])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batches_can_be_trained_on_and_leave_gradients_on(make_model, texts):
    batch = next(batches(make_model().eval(), texts))
    weight = torch.zeros(32, requires_grad=True)
    (batch[0, "resid_post"] @ weight).sum().backward()
    assert weight.grad is not None


def test_hooks_are_gone_between_batches(make_model, texts):
    model = make_model().eval()
    next(batches(model, texts))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_too_little_for_a_batch_is_refused(make_model, texts):
    with pytest.raises(ValueError, match=f"hold {num_counted(texts)} tokens that count, fewer than a batch of 200"):
        batches(make_model(), texts, batch_size=200, buffer_tokens=400)
    with pytest.raises(ValueError, match="`buffer_tokens` must hold two batches of 8 or more, got 15"):
        batches(make_model(), texts, buffer_tokens=15)


@pytest.mark.parametrize("buffer_tokens", [32, 1000])
@pytest.mark.parametrize("num_before", [1, 2, 5, 24])
def test_a_restored_buffer_goes_on_bit_for_bit(make_model, texts, buffer_tokens, num_before):
    model = make_model().eval()
    whole = batches(model, texts, buffer_tokens=buffer_tokens)
    for _ in range(num_before):
        next(whole)
    kept = {place: {name: held.clone() for name, held in whole.values(place).items()} for place in PLACES}
    position, order = whole.position(), {name: held.clone() for name, held in whole.order().items()}
    expected = list(islice(whole, 40))
    again = batches(model, texts, buffer_tokens=buffer_tokens)
    again.restore(position, order, kept)
    for first, second in zip(expected, islice(again, 40), strict=True):
        assert all(torch.equal(first[place], second[place]) for place in PLACES)


def test_a_restored_buffer_of_texts_that_fit_reads_nothing_again(make_model, texts):
    model = make_model().eval()
    first, second = (batches(model, texts, buffer_tokens=1000) for _ in range(2))
    next(first)
    num_passes = count_passes(model)
    second.restore(first.position(), first.order(), {place: first.values(place) for place in PLACES})
    next(second)
    assert num_passes() == 0


def test_what_another_buffer_held_is_not_restored(make_model, texts):
    model = make_model().eval()
    small, large = batches(model, texts), batches(model, texts, buffer_tokens=48)
    next(small)
    with pytest.raises(ValueError, match="does not hold 48 tokens"):
        large.restore(small.position(), small.order(), {place: small.values(place) for place in PLACES})


def count_passes(model):
    """A function that tells how many forward passes there were."""
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    return lambda: len(calls)
