"""Continuous batching: requests of one packed pass steered one by one, with the tokens that `generate` gives."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import continuous_api, input_outputs, requests

from sae_posttrain import FeatureSet, steer
from sae_posttrain.hooks.packed import PackedRequest, pack, steerable
from sae_posttrain.hooks.steer import Steerer

PROMPTS = [[7, 8, 9, 10, 11], [40, 41], list(range(20, 39)), [7, 8, 9, 10, 11], [33], [60, 61, 62, 5, 6, 7, 8]]
ODD = [False, True] * 3
NUM = 12

pytestmark = pytest.mark.filterwarnings("ignore")  # those of continuous batching, which are not ours to change


def features_of(model, num=2) -> FeatureSet:
    width = model.config.get_text_config().hidden_size
    torch.manual_seed(3)
    blocks = [0, 1][:num]
    return FeatureSet.from_directions(
        torch.randn(num, width), blocks=blocks, names=[f"f{i}" for i in blocks], residual_norms=[4.0] * num
    )


def answers_of_generate(model, features, prompts, **options):
    """Each prompt answered by itself, so that nothing rests on padding."""
    answers = []
    for row, ids in enumerate(prompts):
        own = {name: value[row : row + 1] if isinstance(value, list | torch.Tensor) else value
               for name, value in options.items()}  # fmt: skip
        with steer(model, features, **own):
            out = model.generate(
                torch.tensor([ids]), do_sample=False, max_new_tokens=NUM, eos_token_id=None, pad_token_id=0
            )
        answers.append(out[0, len(ids) :].tolist())
    return answers


def batched(model, prompts, **config):
    settings = {"num_blocks": 64, "page_size": 8, "max_batch_tokens": 256, **config}
    out = model.generate_batch(
        prompts,
        generation_config=GenerationConfig(do_sample=False, max_new_tokens=NUM, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(**settings),
        progress_bar=False,
    )
    return [each.generated_tokens for each in out.values()]


CASES = {
    "whole prompts": {},
    "prompts in chunks": {"max_batch_tokens": 8},
    "requests that lose their place": {"num_blocks": 6},
    "chunks and lost places": {"num_blocks": 6, "max_batch_tokens": 8},
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
@pytest.mark.parametrize("positions", ["generated", "all"])
def test_a_mixed_batch_gives_the_tokens_of_generate(make_model, monkeypatch, config, positions):
    model = make_model().eval()
    features = features_of(model)
    lost = []
    plain = requests.RequestState.create_equivalent_initial_request
    monkeypatch.setattr(
        requests.RequestState,
        "create_equivalent_initial_request",
        lambda self: lost.append(len(self.generated_tokens)) or plain(self),
    )
    options = {"strength": 1.5, "rows": ODD, "positions": positions}
    expected = answers_of_generate(model, features, PROMPTS, **options)
    with steer(model, features, **options):
        got = batched(model, PROMPTS, **config)
    assert got == expected
    assert bool(lost) == ("num_blocks" in config)
    if "num_blocks" in config:
        assert any(lost)  # with a part of the answer to be read again
    unsteered = batched(model, PROMPTS)
    assert [a == b for a, b in zip(got, unsteered)] == [not odd for odd in ODD]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3", "gpt2", "qwen3_moe", "phi3"])
def test_families_give_the_tokens_of_generate(make_family, family):
    model = make_family(family)
    features = features_of(model)
    prompts = [[token % 64 for token in ids] for ids in PROMPTS]
    expected = answers_of_generate(model, features, prompts, strength=6.0, rows=ODD)
    with steer(model, features, strength=6.0, rows=ODD):
        got = batched(model, prompts, max_batch_tokens=16)
    assert got == expected
    assert got != batched(model, prompts)


@pytest.mark.parametrize("mode", ["add", "clamp"])
def test_rows_have_strengths_of_their_own(make_model, make_features, mode):
    model, features = make_model().eval(), make_features()
    strength = torch.rand(len(PROMPTS), 4, generator=torch.Generator().manual_seed(0)) * 2
    expected = answers_of_generate(model, features, PROMPTS, strength=strength, mode=mode)
    with steer(model, features, strength=strength, mode=mode):
        assert batched(model, PROMPTS, max_batch_tokens=16) == expected
    with steer(model, features, strength={features.names[1]: 2.0}):
        named = batched(model, PROMPTS)
    assert named == answers_of_generate(model, features, PROMPTS, strength={features.names[1]: 2.0})


def test_blocks_that_the_caller_would_share_are_not_shared(make_model):
    """Copies of one prompt longer than a page: shared, the plain copies would read what the steered ones computed."""
    model = make_model().eval()
    features, prompts = features_of(model), [list(range(10, 34))] * 4
    expected = answers_of_generate(model, features, prompts, strength=2.0, rows=[True, False] * 2, positions="all")
    config = ContinuousBatchingConfig(allow_block_sharing=True)
    with steer(model, features, strength=2.0, rows=[True, False] * 2, positions="all"):
        assert batched(model, prompts, allow_block_sharing=True) == expected
    assert not steerable(config).allow_block_sharing and config.allow_block_sharing  # in a copy


def test_the_hook_saw_as_many_positions_as_each_row_has_tokens(make_model):
    model = make_model().eval()
    steerer = Steerer(model, features_of(model))
    for config, exact in ((CASES["prompts in chunks"], True), (CASES["requests that lose their place"], False)):
        with steerer.armed(1.0, rows=ODD):
            batched(model, PROMPTS, **config)
        counts = [request.pushed for request in steerer._packing.requests]
        assert [request.row for request in steerer._packing.requests] == list(range(6))
        for count in counts:
            assert set(count) == {(0, "resid_post"), (1, "resid_post")}
            assert all(num == NUM if exact else num >= NUM for num in count.values())
        assert exact or max(max(count.values()) for count in counts) > NUM
    steerer.remove()


def test_a_hook_that_misses_positions_is_an_error(make_model, monkeypatch):
    model = make_model().eval()
    steerer = Steerer(model, features_of(model))
    plain = steerer._push_along
    calls = []

    def fails_late(*args):
        calls.append(0)
        return plain(*args)

    monkeypatch.setattr(steerer, "_push_along", fails_late)
    block = model.model.layers[1]

    def loses_its_hooks(*_):
        if len(calls) > 6:
            block._forward_hooks.clear()

    def run():
        with steerer.armed(1.0):
            model.register_forward_pre_hook(loses_its_hooks)
            batched(model, PROMPTS)

    with pytest.raises(ValueError, match="Row 0 should be steered at 12 positions, but the hook at block 1 saw"):
        run()


def test_a_manager_of_ones_own_is_steered_in_the_order_of_its_requests(make_model):
    model = make_model().eval()
    features = features_of(model)
    expected = answers_of_generate(model, features, PROMPTS[:3], strength=1.5, rows=[True, False, True])
    config = GenerationConfig(do_sample=False, max_new_tokens=NUM, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=64, page_size=8, max_batch_tokens=64)
    with steer(model, features, strength=1.5, rows=[True, False, True]):
        with model.continuous_batching_context_manager(config, continuous_batching_config=batching) as manager:
            ids = [manager.add_request(PROMPTS[0]), *manager.add_requests(PROMPTS[1:3])]
            found = {}
            while len(found) < 3:
                result = manager.get_result(timeout=1)
                if result is not None:
                    found[result.request_id] = result.generated_tokens
    assert [found[each] for each in ids] == expected
    assert "add_request" not in vars(manager)
    assert not {"generate", "generate_batch", "init_continuous_batching"} & set(vars(model))


def test_several_answers_to_a_prompt_are_steered_as_it_is(make_model):
    model = make_model().eval()
    features = features_of(model)
    expected = answers_of_generate(model, features, PROMPTS, strength=1.5)

    def answered():
        config = {"do_sample": True, "top_k": 1, "max_new_tokens": NUM, "eos_token_id": -1, "pad_token_id": 0}
        batching = ContinuousBatchingConfig(num_blocks=64, page_size=8, max_batch_tokens=256)
        return model.generate_batch(
            PROMPTS, GenerationConfig(**config, num_return_sequences=2), batching, progress_bar=False
        )

    with steer(model, features, strength=1.5):
        got = [each.generated_tokens for each in answered().values()]
    assert got == [answer for answer in expected for _ in range(2)]
    with pytest.raises(ValueError, match="`rows` names 6 rows, the batch has 12"):
        with steer(model, features, strength=1.5, rows=ODD):
            answered()


def test_adapters_are_steered(make_model):
    torch.manual_seed(0)
    model = get_peft_model(make_model(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    features = features_of(model.get_base_model())
    expected = []
    for row, ids in enumerate(PROMPTS):
        with steer(model, features, strength=1.5, rows=[ODD[row]]):
            inputs = torch.tensor([ids])
            out = model.generate(input_ids=inputs, do_sample=False, max_new_tokens=NUM, eos_token_id=None)
        expected.append(out[0, len(ids) :].tolist())
    with steer(model, features, strength=1.5, rows=ODD):
        assert batched(model, PROMPTS) == expected


def test_one_context_holds_several_batches_and_ordinary_generation(make_model):
    model = make_model().eval()
    features = features_of(model)
    expected = answers_of_generate(model, features, PROMPTS, strength=1.5)
    with steer(model, features, strength=1.5):
        assert batched(model, PROMPTS[:2]) == expected[:2]
        ids = torch.tensor([PROMPTS[2]])
        out = model.generate(ids, do_sample=False, max_new_tokens=NUM, eos_token_id=None, pad_token_id=0)
        assert out[0, ids.shape[1] :].tolist() == expected[2]
        assert batched(model, PROMPTS[3:]) == expected[3:]


def test_a_kept_manager_is_used_if_it_shares_nothing(make_model):
    model = make_model().eval()
    features = features_of(model)
    config = GenerationConfig(do_sample=False, max_new_tokens=NUM, eos_token_id=-1, pad_token_id=0)

    def run(**settings):
        batching = ContinuousBatchingConfig(num_blocks=64, page_size=8, max_batch_tokens=64, **settings)
        out = model.generate_batch(PROMPTS, config, batching, persistent_manager=True, progress_bar=False)
        return [each.generated_tokens for each in out.values()]

    plain = run()
    with pytest.raises(ValueError, match="shares blocks of its cache.*destroy_cached_continuous_batching_manager"):
        with steer(model, features, strength=1.5, rows=ODD):
            run()
    model.destroy_cached_continuous_batching_manager()
    expected = answers_of_generate(model, features, PROMPTS, strength=1.5, rows=ODD)
    for _ in range(2):
        with steer(model, features, strength=1.5, rows=ODD):
            assert run() == expected
        assert run() == plain
    model.destroy_cached_continuous_batching_manager()


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_cuda_graph": True}, "`use_cuda_graph` is set.*Set `use_cuda_graph=False`"),
        ({"use_cuda_graph": (False, True)}, "`use_cuda_graph` is set"),
        ({"default_compile_level": 1}, "`default_compile_level` is set.*Leave `default_compile_level` out"),
    ],
    ids=str,
)
def test_configurations_that_would_skip_hooks_are_refused(make_model, settings, message):
    model = make_model().eval()
    with pytest.raises(ValueError, match=message), steer(model, features_of(model), strength=1.0):
        batched(model, PROMPTS, **settings)
    with steer(model, features_of(model), strength=1.0, rows=[False] * 6):
        assert len(batched(model, PROMPTS)) == 6  # nobody is to be steered


def test_batches_that_do_not_fit_are_refused(make_model):
    model = make_model().eval()
    features = features_of(model)
    with pytest.raises(ValueError, match="`rows` names 2 rows, the batch has 6"):
        with steer(model, features, strength=1.0, rows=[True, False]):
            batched(model, PROMPTS)
    with pytest.raises(ValueError, match="`strength` is given for 2 rows, the batch has 6"):
        with steer(model, features, strength=[1.0, 2.0]):
            batched(model, PROMPTS)
    with pytest.raises(ValueError, match="A mask of positions is for forward passes of its length"):
        with steer(model, features, strength=1.0, positions=torch.ones(6, 19)):
            batched(model, PROMPTS)


def test_a_request_that_fails_is_an_error(make_model):
    model = make_model().eval()

    def fails(_block, args):
        if args[0].shape[1] == 6:  # the first pass over decoded tokens
            raise RuntimeError("out of something")

    handle = model.model.layers[0].register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match=r"Continuous batching failed at row 0: out of something"):
        with steer(model, features_of(model), strength=1.0):
            batched(model, PROMPTS)
    handle.remove()


def test_rows_that_no_request_stands_for_are_an_error(make_model):
    model = make_model().eval()
    config = GenerationConfig(do_sample=False, max_new_tokens=2, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=8, page_size=8)

    def one_request():
        with steer(model, features_of(model), strength=1.0, rows=[True, True]):
            with model.continuous_batching_context_manager(config, continuous_batching_config=batching) as manager:
                manager.add_request([7, 8, 9])
                while manager.get_result(timeout=1) is None:
                    pass

    with pytest.raises(ValueError, match="Row 1 should be steered, but no request was added for it"):
        one_request()


def test_a_manager_that_still_runs_is_an_error(make_model):
    model = make_model().eval()
    config = GenerationConfig(do_sample=False, max_new_tokens=2, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=8, page_size=8)
    managers = []

    def left_running():
        with steer(model, features_of(model), strength=1.0):
            managers.append(model.init_continuous_batching(config, batching))
            managers[0].start()

    with pytest.raises(ValueError, match="still runs, and the rest of its answers would not be steered"):
        left_running()
    managers[0].stop(block=True)


# The table -----------------------------------------------------------------------------------------------------------


def test_tokens_are_pushed_by_their_position_in_their_own_text():
    whole, chunk, decoded = (PackedRequest(row, 5, first) for row, first in ((0, 4), (1, 6), (2, 0)))
    batch = pack([whole, chunk, decoded], lengths=[5, 4, 1], num_read=[0, 4, 9])
    assert batch.rows.tolist() == [0] * 5 + [1] * 4 + [2]
    #      whole prompt: its last token; positions 4 to 7, pushed from 6 on; all of the text
    assert batch.mask.int().tolist() == [0, 0, 0, 0, 1, 0, 0, 1, 1, 1]
    batch.reach((3, "resid_post"))
    assert [each.pushed[3, "resid_post"] for each in (whole, chunk, decoded)] == [1, 2, 1]


def test_what_is_due_counts_an_answer_that_is_read_again():
    request = PackedRequest(0, num_prompt=3, first=2)
    assert request.num_due() == 0
    request.state = SimpleNamespace(initial_tokens=[1, 2, 3], generated_tokens=[])
    assert request.num_due() == 0  # its prompt is being read
    request.state = SimpleNamespace(initial_tokens=[1, 2, 3], generated_tokens=[4, 5])
    assert request.num_due() == 2  # the last of the prompt, and 4
    request.state = SimpleNamespace(initial_tokens=[1, 2, 3, 4, 5], generated_tokens=[6])
    assert request.num_due() == 3


def test_names_of_transformers_that_we_touch():
    """A release that moves one of them fails here first."""
    manager, states = continuous_api.ContinuousBatchingManager, inspect.getsource(requests.RequestState)
    start = inspect.getsource(manager.start)
    assert "self._generation_thread = threading.Thread(target=self._run_generation_loop)" in start
    assert list(inspect.signature(manager.add_request).parameters)[:3] == ["self", "input_ids", "request_id"]
    assert "self.add_request(" in inspect.getsource(manager.add_requests)
    assert "manager.add_requests(" in inspect.getsource(continuous_api.ContinuousMixin.generate_batch)
    assert "self.continuous_batching_context_manager(" in inspect.getsource(
        continuous_api.ContinuousMixin.generate_batch
    )
    made = inspect.getsource(continuous_api.ContinuousMixin.continuous_batching_context_manager)
    assert "self.init_continuous_batching(" in made
    given = list(inspect.signature(continuous_api.ContinuousMixin.init_continuous_batching).parameters)
    assert given[:3] == ["self", "generation_config", "continuous_batching_config"]
    assert "self.batch_processor = batch_processor" in inspect.getsource(manager._run_generation_loop)
    assert "self.inputs_and_outputs" in inspect.getsource(continuous_api.ContinuousBatchProcessor.__init__)
    prepared = inspect.getsource(input_outputs.ContinuousBatchingIOs.prepare_batch_tensors)
    assert "self.requests_in_batch.append(future_state)" in prepared
    assert "state.position_offset += query_length" in prepared
    pairs = inspect.getsource(input_outputs.ContinuousBatchingAsyncIOs)
    assert "self.io_pairs[self.current_pair]" in pairs and ".host_io" in pairs
    for name in ("initial_tokens", "generated_tokens", "position_offset", "request_id"):
        assert f"    {name}: " in states
    assert 'f"{state_to_fork.request_id}__child#{i}"' in inspect.getsource(continuous_api.ContinuousBatchProcessor)
