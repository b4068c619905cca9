"""Which positions of which passes are pushed: several texts and turns in one context, padding, autocast, refusals."""

import threading

import pytest
import torch
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    MambaConfig,
    MambaForCausalLM,
    TextIteratorStreamer,
)

from sae_posttrain import FeatureSet, steer
from sae_posttrain.hooks.record import record_blocks

PROMPTS = [[7, 8, 9, 10, 11], [40, 41], [90, 91, 92]]
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def padded(prompts, side="left"):
    longest = max(map(len, prompts))
    fill = [[0] * (longest - len(ids)) for ids in prompts]
    pairs = [(pad, ids) if side == "left" else (ids, pad) for pad, ids in zip(fill, prompts)]
    ones = [(pad, [1] * len(ids)) if side == "left" else ([1] * len(ids), pad) for pad, ids in zip(fill, prompts)]
    return {
        "input_ids": torch.tensor([first + second for first, second in pairs]),
        "attention_mask": torch.tensor([first + second for first, second in ones]),
    }


@pytest.fixture
def model(make_model):
    return make_model().eval()


@pytest.fixture
def features(make_features):
    return make_features(blocks=(1,), per_block=1)


def pushed(model, features, *passes, context=None, **options):
    """Positions that differ from a plain pass, for each of several forward passes made in one context."""
    with torch.no_grad():
        with record_blocks(model, [1]) as plain:
            for given in passes:
                model(**given)
        with steer(model, features, **{"strength": 2.0, **options}), record_blocks(model, [1]) as steered:
            for given in passes:
                model(**given)
    return [(a - b).norm(dim=-1) > 1e-6 for a, b in zip(plain[1], steered[1])]


# Several texts in one context ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("longer_by", [0, 1, 2])
def test_a_second_forward_pass_is_a_text_of_its_own(model, features, longer_by):
    first, second = torch.arange(5, 10)[None], torch.arange(20, 25 + longer_by)[None]
    before, after = pushed(model, features, {"input_ids": first}, {"input_ids": second})
    for mask in (before, after):
        assert mask[0].tolist() == [False] * (mask.shape[1] - 1) + [True]


def test_texts_of_other_batch_sizes_follow_each_other(model, features):
    passes = [{"input_ids": torch.arange(5, 5 + rows * length).reshape(rows, length)} for rows, length in
              ((2, 4), (3, 5), (1, 6), (3, 7))]  # fmt: skip
    for mask in pushed(model, features, *passes):
        assert mask[:, -1].all() and not mask[:, :-1].any()


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_second_generate_gives_the_tokens_of_a_context_of_its_own(model, features, use_cache):
    def answer(ids):
        return model.generate(torch.tensor([ids]), max_new_tokens=3, use_cache=use_cache, **GREEDY)

    texts = ([7, 8, 9], [30, 31, 32, 33, 34, 35], [50, 51, 52, 53, 54, 55, 56, 57, 58])  # 3 + 3, then 6 + 3
    alone = []
    for ids in texts:
        with steer(model, features, strength=1.5):
            alone.append(answer(ids))
    with steer(model, features, strength=1.5):
        assert all(torch.equal(answer(ids), expected) for ids, expected in zip(texts, alone))


def test_a_loop_of_ones_own_over_a_cache_is_steered_like_generate(model, features):
    ids = torch.tensor([[7, 8, 9, 10]])
    with steer(model, features, strength=1.5), torch.no_grad():
        expected = model.generate(ids, max_new_tokens=6, **GREEDY)
    for cache in (DynamicCache(), None):
        with steer(model, features, strength=1.5), torch.no_grad():
            read, text = ids, ids
            for _ in range(6):
                out = model(read, past_key_values=cache, use_cache=True)
                cache, read = out.past_key_values, out.logits[:, -1:].argmax(dim=-1)
                text = torch.cat([text, read], dim=1)
        assert torch.equal(text, expected)


def test_a_text_over_a_prefix_that_was_read_before_begins_anew_each_time(model, features):
    def prefix():
        with torch.no_grad():
            return model(torch.tensor([[3, 4, 5]]), past_key_values=DynamicCache()).past_key_values

    caches = [prefix() for _ in range(4)]
    passes = [{"input_ids": torch.tensor([[20, 21, 22]]), "past_key_values": cache} for cache in caches]
    with torch.no_grad(), record_blocks(model, [1]) as plain:
        for given in passes[:2]:
            model(**given)
    with torch.no_grad(), steer(model, features, strength=2.0), record_blocks(model, [1]) as steered:
        for given in passes[2:]:
            model(**given)
    for before, after in zip(plain[1], steered[1]):
        assert ((before - after).norm(dim=-1) > 1e-6).tolist() == [[False, False, True]]


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_model_of_recurrent_layers_alone_is_steered(use_cache):
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8)).eval()
    direction = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    features = FeatureSet.from_directions(direction, blocks=[0], names=["a"], residual_norms=[3.0])
    ids = torch.tensor([[7, 8, 9, 10]])
    plain = model.generate(ids, max_new_tokens=6, **GREEDY)
    with steer(model, features, strength=2.0):
        answers = [model.generate(ids, max_new_tokens=6, use_cache=use_cache, **GREEDY) for _ in range(2)]
    assert torch.equal(*answers) and not torch.equal(answers[0], plain)
    predicts = torch.ones_like(answers[0], dtype=torch.bool)
    predicts[:, :3] = False
    with torch.no_grad(), steer(model, features, strength=2.0, positions=predicts):
        replayed = model(answers[0], use_cache=False).logits.argmax(dim=-1)
    assert torch.equal(replayed[:, 3:-1], answers[0][:, 4:])


# Turns over a kept cache ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_full_ids", [True, False])
@pytest.mark.parametrize("batched", [False, True])
def test_a_conversation_over_a_kept_cache_is_steered_in_each_answer(model, features, with_full_ids, batched):
    inputs = padded(PROMPTS if batched else PROMPTS[:1])
    text, mask, cache = inputs["input_ids"], inputs["attention_mask"], DynamicCache()
    is_generated = torch.zeros_like(text, dtype=torch.bool)
    with steer(model, features, strength=1.5):
        for turn in range(3):
            num_prompt = text.shape[1]
            given = text if with_full_ids or turn == 0 else text[:, int(cache.get_seq_length()) :]
            out = model.generate(
                given, attention_mask=mask, past_key_values=cache, max_new_tokens=4, return_dict_in_generate=True,
                **GREEDY,
            )  # fmt: skip
            assert out.past_key_values is cache
            answer = out.sequences[:, given.shape[1] :]
            ones = torch.ones_like(answer, dtype=torch.bool)
            is_generated = torch.cat([is_generated, ones], dim=1)
            text = torch.cat([text, answer], dim=1)
            user = torch.full((len(text), 3), 60 + turn)
            if turn < 2:
                text = torch.cat([text, user], dim=1)
                is_generated = torch.cat([is_generated, torch.zeros_like(user, dtype=torch.bool)], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), text.shape[1] - mask.shape[1])], dim=1)
            assert text.shape[1] > num_prompt
    predicts = torch.cat([is_generated[:, 1:], torch.zeros(len(text), 1, dtype=torch.bool)], dim=1)
    position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad(), steer(model, features, strength=1.5, positions=predicts):
        replayed = model(text, attention_mask=mask, position_ids=position_ids).logits.argmax(dim=-1)
    assert torch.equal(replayed[:, :-1][is_generated[:, 1:]], text[:, 1:][is_generated[:, 1:]])


def test_a_new_turn_over_a_kept_cache_outside_generate_is_refused(model, features):
    message = "For a new turn over a kept cache call `generate` again"
    with torch.no_grad(), steer(model, features, strength=1.0):
        out = model(torch.tensor([[5, 6, 7]]), use_cache=True)  # the model makes the cache
        with pytest.raises(ValueError, match=message):
            model(torch.tensor([[8, 9]]), past_key_values=out.past_key_values)


# Ways of generating that are refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_lookup_num_tokens": 3}, "Assisted generation cannot be steered .`prompt_lookup_num_tokens` is set"),
        ({"generation_config": GenerationConfig(prompt_lookup_num_tokens=3)}, "Assisted generation cannot be steered"),
        ({"generation_config": GenerationConfig(assistant_early_exit=1)}, "`assistant_early_exit` is set"),
        ({"prefill_chunk_size": 2}, "A prompt read in chunks cannot be steered"),
        ({"prefill_chunk_size": 4}, "A prompt read in chunks cannot be steered"),  # 4 + 1: looks like decoding
        ({"cache_implementation": "static"}, "needs a dynamic cache"),
        ({"cache_implementation": "paged"}, "Call `generate_batch` with prompts of their own lengths"),
    ],
)
@pytest.mark.parametrize("positions", ["generated", "all"])
def test_passes_of_which_it_is_not_known_what_is_generated_are_refused(model, features, options, message, positions):
    with pytest.raises(ValueError, match=message), steer(model, features, strength=1.0, positions=positions):
        model.generate(torch.tensor([[7, 8, 9, 7, 8]]), max_new_tokens=4, **{**GREEDY, **options})
    assert not {"generate", "generate_batch"} & set(vars(model))


def test_an_assistant_is_refused_before_the_first_pass_on_either_side(make_model, model, features):
    ids, other = torch.tensor([[7, 8, 9]]), make_model(1).eval()
    for drafts_for, assistant in ((model, other), (other, model)):
        with pytest.raises(ValueError, match="Assisted generation cannot be steered"):
            with steer(model, features, strength=1.0):
                drafts_for.generate(ids, assistant_model=assistant, max_new_tokens=4, **GREEDY)


def test_drafts_that_a_decoding_of_ones_own_checks_are_refused(model, features):
    def checks_drafts(model, input_ids, drafted=(5, 6), **_):
        drafts = torch.tensor([drafted])
        return model(torch.cat([input_ids, drafts], dim=1), use_cache=True)

    def checks_later(model, input_ids, **_):
        cache = model(input_ids, use_cache=True).past_key_values
        return model(torch.tensor([[5, 6]]), past_key_values=cache)

    for decoding in (checks_drafts, checks_later):
        with (
            pytest.raises(ValueError, match="not known which of them are generated"),
            steer(model, features, strength=1.0),
        ):
            model.generate(torch.tensor([[7, 8, 9]]), custom_generate=decoding, max_new_tokens=4, **GREEDY)


@pytest.mark.filterwarnings("ignore")
def test_a_manager_that_was_made_before_the_context_is_refused(model, features):
    config = GenerationConfig(max_new_tokens=4, **{**GREEDY, "eos_token_id": -1})
    batching = ContinuousBatchingConfig(num_blocks=8, page_size=16, max_batch_tokens=32)
    with model.continuous_batching_context_manager(config, continuous_batching_config=batching) as manager:
        with pytest.raises(ValueError, match="A manager of continuous batching runs on this model"):
            with steer(model, features, strength=1.0):
                manager.add_request([7, 8, 9])
    manager = model.init_continuous_batching(config, continuous_batching_config=batching)

    def started_inside():
        with steer(model, features, strength=1.0):
            model(torch.tensor([[5, 6, 7]]))
            manager.start()
            manager.add_request([7, 8, 9])
            manager.join(0.0, timeout=20)

    with pytest.raises(ValueError, match="in another thread was refused: This forward pass reads a paged cache"):
        started_inside()
    manager.stop(block=True)


def test_an_answer_streamed_from_a_thread_is_steered_and_must_end_inside(model, features, tokenizer):
    ids = torch.tensor([[7, 8, 9]])
    with steer(model, features, strength=1.5):
        expected = model.generate(ids, max_new_tokens=6, **GREEDY)
    streamer, answers = TextIteratorStreamer(tokenizer), []

    def run(streamer=None):
        answers.append(model.generate(ids, max_new_tokens=6, streamer=streamer, **GREEDY))

    with steer(model, features, strength=1.5):
        thread = threading.Thread(target=run, args=(streamer,))
        thread.start()
        for _ in streamer:
            model(torch.tensor([[9, 9]]))  # a pass of this thread in between
        thread.join()
    assert torch.equal(answers[0], expected)

    entered, leave = threading.Event(), threading.Event()

    def waits(*_):
        entered.set()
        leave.wait(10)
        return [0]

    def left_too_soon():
        with steer(model, features, strength=1.5):
            slow.start()
            entered.wait(10)

    options = {"max_new_tokens": 1, "prefix_allowed_tokens_fn": waits, **GREEDY}
    slow = threading.Thread(target=lambda: model.generate(ids, **options))
    with pytest.raises(ValueError, match="still runs in another thread, and the rest of its answer"):
        left_too_soon()
    leave.set()
    slow.join()


def test_contexts_on_one_model_are_nested(model, features):
    ids = torch.tensor([[7, 8, 9]])
    with steer(model, features, strength=3.0):
        once = model.generate(ids, max_new_tokens=6, **GREEDY)
    with steer(model, features, strength=1.0), steer(model, features, strength=2.0):
        assert torch.equal(model.generate(ids, max_new_tokens=6, **GREEDY), once)
    assert "generate" not in vars(model)


# Padding -------------------------------------------------------------------------------------------------------------


def causal(attention_mask, additive=False, window=9):
    """The 4-D mask that transformers makes of a 2-D one; a query without keys is shown all of them."""
    size = attention_mask.shape[1]
    near = torch.ones(size, size).tril().triu(1 - window).bool()
    mask = near & attention_mask.bool()[:, None, None, :]
    mask |= ~mask.any(dim=-1, keepdim=True)
    return torch.where(mask, 0.0, torch.finfo(torch.float32).min) if additive else mask


@pytest.mark.parametrize("form", ["2-D", "2-D float", "4-D", "4-D additive", "4-D sliding"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_read_from_the_attention_mask(model, features, form, side):
    inputs = padded(PROMPTS, side)
    real = inputs["attention_mask"]
    inputs["attention_mask"] = {
        "2-D": real,
        "2-D float": real.float(),
        "4-D": causal(real),
        "4-D additive": causal(real, additive=True),
        "4-D sliding": causal(real, window=2),
    }[form]
    (last,) = pushed(model, features, inputs)
    expected = [5, 2, 3] if side == "right" else [5, 5, 5]
    assert [row.nonzero().flatten().tolist() for row in last] == [[end - 1] for end in expected]
    (everything,) = pushed(model, features, inputs, positions="all")
    assert everything[real.bool()].all()
    assert not everything[:, 1:][(real[:, :-1] == 1) & (real[:, 1:] == 0)].any()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_is_told_where_the_decoder_is_given_masks_for_each_kind_of_layer(make_family, attention):
    model = make_family("gemma3_multimodal")
    model.set_attn_implementation(attention)
    direction = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    features = FeatureSet.from_directions(direction, blocks=[1], names=["a"], residual_norms=[3.0])
    (last,) = pushed(model, features, padded([[7, 8, 9], [40, 41], [50, 51, 52]], "right"))
    assert last.int().tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 1]]
    with steer(model, features, strength=2.0):
        assert model.generate(**padded([[7, 8, 9], [40, 41]]), max_new_tokens=3, **GREEDY).shape == (2, 6)


@pytest.mark.parametrize("positions", ["generated", "all", "mask"])
def test_a_row_of_padding_alone_is_not_touched(model, features, positions):
    inputs = padded(PROMPTS, "right")
    inputs["attention_mask"][1] = 0
    chosen = torch.ones(3, 5, dtype=torch.bool) if positions == "mask" else positions
    followed_by = {"input_ids": torch.full((3, 5), 9)}  # a text that follows does not hide it
    with pytest.raises(ValueError, match="Row 1 should be steered, but no position of it was touched"):
        pushed(model, features, inputs, followed_by, positions=chosen)
    with torch.no_grad(), steer(model, features, strength=1.0, positions=chosen, rows=[True, False, True]):
        model(**inputs)


def test_padding_that_cannot_be_told_is_refused(model, features):
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    packed = torch.block_diag(torch.ones(3, 3).tril(), torch.ones(2, 2).tril()).bool()[None, None]
    for given, message in (
        ({"position_ids": torch.tensor([[0, 1, 2, 0, 1]])}, "The position ids of a row start again"),
        ({"position_ids": torch.tensor([[0, 1, 2, 2, 2]])}, "The position ids of a row start again"),
        ({"attention_mask": packed}, "The 4-D `attention_mask` is not for one text per row"),
    ):
        with pytest.raises(ValueError, match=message + ".*Pad with a 2-D `attention_mask`"):
            pushed(model, features, {"input_ids": ids, **given})
        chosen = torch.tensor([[False, False, True, False, True]])
        assert torch.equal(pushed(model, features, {"input_ids": ids, **given}, positions=chosen)[0], chosen)
    together = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 0, 1]])}
    assert pushed(model, features, together, positions="all")[0].all()


def test_prompts_padded_on_the_right_are_not_generated_from(model, features):
    with pytest.raises(ValueError, match="The prompt in row 1 ends in padding.*padding_side = 'left'"):
        with steer(model, features, strength=1.0):
            model.generate(**padded(PROMPTS, "right"), max_new_tokens=2, **GREEDY)


# Number types --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_clamping_and_reading_are_exact_under_autocast(model, dtype):
    direction = torch.randn(1, 32, generator=torch.Generator().manual_seed(4))
    features = FeatureSet.from_directions(direction, blocks=[1], names=["one"])
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        with steer(model, features, strength=-97.0, mode="clamp", positions="all"), record_blocks(model, [1]) as out:
            model(**padded(PROMPTS))
        pre = features.pre_activations(out[1][0])
    assert out[1][0].dtype == torch.float32
    torch.testing.assert_close(pre, torch.full_like(pre, -97.0), rtol=1e-6, atol=1e-4)


def test_an_added_push_is_exact_under_autocast(model, features):
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with record_blocks(model, [1]) as plain:
            model(ids)
        with steer(model, features, strength=300.0, unit="raw", positions="all"), record_blocks(model, [1]) as steered:
            model(ids)
    push = steered[1][0] - plain[1][0]
    expected = 300 * torch.nn.functional.normalize(features.directions)
    torch.testing.assert_close(push, expected.expand_as(push), rtol=1e-5, atol=1e-3)
