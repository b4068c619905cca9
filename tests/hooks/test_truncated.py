"""A pass that stops after the deepest site: the values of the whole pass, and nothing of it left behind."""

import gc
import logging
import threading
import weakref
from contextlib import suppress

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from sae_posttrain import steer
from sae_posttrain.hooks import truncated
from sae_posttrain.hooks.blocks import find_blocks, unwrap
from sae_posttrain.hooks.edit import edit_sites
from sae_posttrain.hooks.record import record_sites
from sae_posttrain.hooks.sites import find_site
from sae_posttrain.hooks.truncated import read_sites
from sae_posttrain.sites import SITES

from .conftest import FAMILIES, MORE_FAMILIES

TOKENS = {
    "input_ids": pad(torch.arange(3, 27).reshape(2, 12), (4, 0)),
    "attention_mask": pad(torch.ones(2, 12, dtype=torch.long), (4, 0)),
}
OUTPUTS = [(0, "resid_post"), (1, "resid_post")]
EVERY_FAMILY = [*FAMILIES, "gemma3_multimodal", *MORE_FAMILIES]


def sites_of(model, block: int) -> list[tuple[int, str]]:
    """The sites that this block has."""
    found = []
    for site in SITES:
        with suppress(ValueError):  # the block's layout has no such site, or is not known
            found.append(find_site(model, (block, site)).place)
    return found


def whole(model, places) -> dict:
    with torch.no_grad(), record_sites(model, places) as values:
        model(**TOKENS, use_cache=False)
    return {place: captured[0] for place, captured in values.items()}


def hooks_of(model) -> list[int]:
    """How many hooks each module has."""
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def outputs_of(model) -> list[torch.Tensor]:
    """Everything that an ordinary pass gives, with a cache and the states of every block."""
    with torch.no_grad():
        output = model(**TOKENS, output_hidden_states=True, use_cache=True)
    return [output.logits, *(output.hidden_states or ())]


def assert_same(some, others) -> None:
    assert len(some) == len(others)
    assert all(one.equal(other) for one, other in zip(some, others))


class Calls:
    """How often each block and the output head ran to their end."""

    def __init__(self, model):
        self.blocks = [0] * len(find_blocks(model))
        self.head = 0
        for number, block in enumerate(find_blocks(model)):
            block.register_forward_hook(lambda *_, number=number: self._count(number))
        unwrap(model).get_output_embeddings().register_forward_hook(lambda *_: self._count(None))

    def _count(self, number):
        if number is None:
            self.head += 1
        else:
            self.blocks[number] += 1


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_site_holds_the_bits_of_the_whole_pass(make_family, family):
    model = make_family(family)
    before = outputs_of(model)
    hooks = hooks_of(model)
    for block in (0, 1):
        places = sites_of(model, block)
        assert {"resid_pre", "resid_post", "attn_z"} <= {site for _, site in places} or family in MORE_FAMILIES
        for chosen in ([place] for place in places):
            assert_same(read_sites(model, chosen, **TOKENS).values(), whole(model, chosen).values())
        assert_same(read_sites(model, places, **TOKENS).values(), whole(model, places).values())
    assert hooks_of(model) == hooks
    assert_same(outputs_of(model), before)


def test_later_blocks_and_the_head_do_not_run(make_model):
    model = make_model(num_blocks=4).eval()
    calls = Calls(model)
    read_sites(model, [(2, "resid_pre"), (0, "mlp_out")], **TOKENS)
    assert calls.blocks == [1, 1, 0, 0]
    read_sites(model, [(2, "resid_pre"), (2, "attn_z")], **TOKENS)
    assert calls.blocks == [2, 2, 1, 0]
    read_sites(model, [(0, "resid_pre")], **TOKENS)
    assert calls.blocks == [2, 2, 1, 0]
    read_sites(model, [(3, "resid_post")], **TOKENS)
    assert calls.blocks == [3, 3, 2, 1]
    assert calls.head == 0


def test_bfloat16_model_and_model_in_training_give_the_same_bits(make_family):
    model = make_family("llama").bfloat16()
    assert_same(read_sites(model, OUTPUTS, **TOKENS).values(), whole(model, OUTPUTS).values())
    model.config.attention_dropout = 0.5
    model = model.train()
    torch.manual_seed(1)
    dropped = whole(model, OUTPUTS)
    torch.manual_seed(1)
    read = read_sites(model, OUTPUTS, **TOKENS)
    assert_same(read.values(), dropped.values())
    assert model.training and not any(value.requires_grad for value in read.values())


def test_site_is_read_after_what_others_have_changed_there(make_model):
    model = make_model().eval()
    with edit_sites(model, {OUTPUTS[0]: torch.ones_like}):
        changed = read_sites(model, OUTPUTS, **TOKENS)
        assert_same(changed.values(), whole(model, OUTPUTS).values())
    assert not changed[OUTPUTS[1]].equal(read_sites(model, OUTPUTS, **TOKENS)[OUTPUTS[1]])


# What runs around the blocks -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # nothing has, in a pass that only reads
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_leaves_the_gradient_as_it_was(make_model, use_reentrant):
    def gradient(model) -> torch.Tensor:
        model.zero_grad()
        model(**TOKENS, labels=TOKENS["input_ids"]).loss.backward()
        return model.model.layers[0].mlp.down_proj.weight.grad.clone()

    model = make_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    before = gradient(model)
    assert_same(read_sites(model, OUTPUTS[:1], **TOKENS).values(), whole(model, OUTPUTS[:1]).values())
    assert gradient(model).equal(before)


ADAPTERS = {
    "LoRA": LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    "DoRA": LoraConfig(target_modules=["q_proj"], init_lora_weights=False, use_dora=True),
    "IA3": IA3Config(target_modules=["k_proj"], feedforward_modules=[], init_ia3_weights=False),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_are_read_with_the_same_bits(make_model, adapter):
    model = get_peft_model(make_model(num_blocks=3).eval(), ADAPTERS[adapter]).eval()
    before, hooks = outputs_of(model), hooks_of(model)
    calls = Calls(model)
    values = read_sites(model, OUTPUTS, **TOKENS)
    assert (calls.blocks, calls.head) == ([1, 1, 0], 0)
    assert_same(values.values(), whole(model, OUTPUTS).values())
    assert [count - added for count, added in zip(hooks_of(model), hooks)].count(1) == 4  # those of `Calls`
    assert_same(outputs_of(model), before)


def test_activated_lora_runs_whole_and_says_so(make_model, caplog):
    truncated._warn_once.cache_clear()
    config = LoraConfig(
        target_modules=["q_proj"], init_lora_weights=False, alora_invocation_tokens=[20, 21], task_type="CAUSAL_LM"
    )
    model = get_peft_model(make_model().eval(), config).eval()
    hooks = hooks_of(model)
    with caplog.at_level(logging.WARNING):
        values = read_sites(model, OUTPUTS[:1], **TOKENS)
        read_sites(model, OUTPUTS[:1], **TOKENS)
    assert caplog.text.count("read in whole forward passes, which takes longer: activated LoRA") == 1
    assert_same(values.values(), whole(model, OUTPUTS[:1]).values())
    assert hooks_of(model) == hooks


@pytest.mark.parametrize("how", ["wrapped", "in place", "forward", "blocks"])
def test_compiled_model_is_read_without_its_graph_before_and_after_it_ran(make_model, how):
    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    graphs: list = []
    torch._dynamo.reset()
    model = make_model().eval()
    expected = whole(model, OUTPUTS)
    compiled = model
    if how == "wrapped":
        compiled = torch.compile(model, backend=backend)
    elif how == "in place":
        model.compile(backend=backend)
    elif how == "forward":
        model.forward = torch.compile(model.forward, backend=backend)
    else:
        for block in model.model.layers:
            block.compile(backend=backend)
    assert_same(read_sites(compiled, OUTPUTS, **TOKENS).values(), expected.values())
    assert not graphs
    with torch.no_grad():
        first = compiled(**TOKENS).logits
    num_graphs = len(graphs)
    assert num_graphs
    for _ in range(2):
        assert_same(read_sites(compiled, OUTPUTS[:1], **TOKENS).values(), [expected[OUTPUTS[0]]])
    with torch.no_grad():
        assert compiled(**TOKENS).logits.equal(first)
    assert len(graphs) == num_graphs


def test_ddp_is_read_and_trains_on(make_model, tmp_path):
    def gradient(model) -> torch.Tensor:
        model.zero_grad()
        model(**TOKENS, labels=TOKENS["input_ids"]).loss.backward()
        return unwrap(model).model.layers[0].mlp.down_proj.weight.grad.clone()

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        plain = make_model(num_blocks=3)
        expected, trained = whole(plain, OUTPUTS), gradient(plain)
        model = DistributedDataParallel(plain)
        calls = Calls(model)
        assert_same(read_sites(model, OUTPUTS, **TOKENS).values(), expected.values())
        assert (calls.blocks, calls.head) == ([1, 1, 0], 0)
        assert gradient(model).equal(trained)
    finally:
        torch.distributed.destroy_process_group()


def on_meta(model) -> list[bool]:
    return [parameter.device.type == "meta" for parameter in model.parameters()]


def test_offloaded_blocks_are_put_away_again(make_model):
    model = make_model(num_blocks=3).eval()
    expected, before = whole(model, OUTPUTS), outputs_of(model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    away = on_meta(model)
    assert any(away)
    calls = Calls(model)
    assert_same(read_sites(model, OUTPUTS, **TOKENS).values(), expected.values())
    assert_same(read_sites(model, [(1, "mlp_out")], **TOKENS).values(), whole(model, [(1, "mlp_out")]).values())
    assert calls.blocks == [3, 3, 1]
    assert on_meta(model) == away
    assert_same(outputs_of(model), before)


def test_offloaded_decoder_is_put_away_again_after_a_whole_pass(make_model, caplog):
    truncated._warn_once.cache_clear()
    model = make_model().eval()
    expected, before = whole(model, OUTPUTS), outputs_of(model)
    cpu = torch.device("cpu")
    add_hook_to_module(model.model, AlignDevicesHook(cpu, offload=True, place_submodules=True))
    away = on_meta(model)
    with caplog.at_level(logging.WARNING):
        assert_same(read_sites(model, OUTPUTS[:1], **TOKENS).values(), [expected[OUTPUTS[0]]])
    assert "accelerate puts the parameters of a module around the blocks away" in caplog.text
    assert on_meta(model) == away
    assert_same(outputs_of(model), before)


def test_sharded_model_runs_whole(make_model, caplog):
    truncated._warn_once.cache_clear()
    model = make_model().eval()
    calls = Calls(model)
    model.lm_head.weight.ds_id = 0  # as DeepSpeed ZeRO-3 marks a parameter
    with caplog.at_level(logging.WARNING):
        read_sites(model, OUTPUTS[:1], **TOKENS)
    assert (calls.blocks, calls.head) == ([1, 1], 1)
    assert "sharded over processes" in caplog.text


# Errors, steering, threads -------------------------------------------------------------------------------------------


def test_nothing_to_read_unknown_block_and_silent_site_are_errors(make_family):
    model = make_family("llama")
    with pytest.raises(ValueError, match="There is no site to read"):
        read_sites(model, [], **TOKENS)
    with pytest.raises(ValueError, match="Unknown block 2: the model has blocks 0 to 1"):
        read_sites(model, [(0, "resid_post"), (2, "resid_post")], **TOKENS)
    model.model.layers[0].mlp.spare = torch.nn.Linear(32, 32)
    with pytest.raises(ValueError, match="did not reach mlp.spare.input of block 0: nothing was read"):
        read_sites(model, [(0, "mlp.spare.input"), (0, "resid_post")], **TOKENS)
    assert not any(hooks_of(model))


def test_error_of_the_model_passes_through_and_leaves_no_hook(make_model):
    model = make_model().eval()
    before = outputs_of(model)
    hooks = hooks_of(model)
    with pytest.raises(IndexError):
        read_sites(model, OUTPUTS, **TOKENS | {"input_ids": TOKENS["input_ids"] + 10_000})
    assert hooks_of(model) == hooks
    assert_same(outputs_of(model), before)


def test_stop_of_another_reading_is_not_taken_for_its_own(make_model):
    outer, inner = make_model().eval(), make_model(seed=1).eval()
    read = []

    def read_inner(*_):
        read.append(read_sites(inner, OUTPUTS, **TOKENS))

    expected = whole(inner, OUTPUTS), whole(outer, OUTPUTS)
    with outer.model.layers[0].register_forward_hook(read_inner):
        values = read_sites(outer, OUTPUTS, **TOKENS)
    assert_same(read[0].values(), expected[0].values())
    assert_same(values.values(), expected[1].values())


def test_pass_of_another_thread_is_neither_read_nor_stopped(make_model):
    model, places = make_model().eval(), [(0, "resid_post"), (1, "mlp_out")]
    expected, logits = whole(model, places), outputs_of(model)[0]
    others = TOKENS | {"input_ids": TOKENS["input_ids"].flip(1)}
    passes: list[torch.Tensor] = []

    def run():
        with torch.no_grad():
            passes.append(model(**TOKENS).logits)
            model(**others)

    def in_another_thread(*_):  # when everything is read, just before the pass of this thread is stopped
        if not passes and threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()

    with model.model.layers[1].register_forward_hook(in_another_thread):
        values = read_sites(model, places, **TOKENS)
    assert passes and passes[0].equal(logits)
    assert_same(values.values(), expected.values())


def test_steered_pass_is_read_as_it_is_pushed_and_a_deeper_push_is_an_error(make_model, make_features):
    model, features = make_model(num_blocks=3).eval(), make_features(blocks=(0,))
    plain = read_sites(model, OUTPUTS, **TOKENS)
    with steer(model, features, strength=2.0, positions="all"):
        pushed = read_sites(model, OUTPUTS, **TOKENS)
    with steer(model, features, strength=2.0, positions="all"):
        expected = whole(model, OUTPUTS)
    assert_same(pushed.values(), expected.values())
    assert not pushed[OUTPUTS[0]].equal(plain[OUTPUTS[0]])
    deeper = make_features(blocks=(2,))
    with pytest.raises(ValueError, match="nothing was steered"), steer(model, deeper, strength=2.0, positions="all"):
        read_sites(model, OUTPUTS, **TOKENS)
    assert_same(read_sites(model, OUTPUTS, **TOKENS).values(), plain.values())


def test_activations_of_the_pass_are_freed_when_it_stops(make_model):
    """The traceback of the stop holds every frame of the pass; a kept reference would hold their tensors."""
    model = make_model().eval()
    seen = []
    gc.disable()
    try:
        with model.model.layers[0].register_forward_hook(lambda _m, _a, output: seen.append(weakref.ref(output))):
            values = read_sites(model, [(1, "mlp_out")], **TOKENS)
        assert seen[0]() is None
    finally:
        gc.enable()
    assert list(values) == [(1, "mlp_out")]
