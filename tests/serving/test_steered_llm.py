from dataclasses import dataclass

import pytest

from sae_posttrain.serving.pushes import fingerprint
from sae_posttrain.serving.row_settings import RowSettings
from sae_posttrain.serving.steered_llm import SteeredLLM

from .conftest import Params


@dataclass
class Answer:
    token_ids: list


@dataclass
class Output:
    outputs: list


class Engine:
    """`vllm.LLM` as far as the proxy uses it: it notes what it is asked for, and counts as a worker would."""

    def __init__(self, features, pushes=True):
        self.calls, self.features, self.pushes, self.count, self.errors = [], fingerprint(features), pushes, 0, []

    def generate(self, prompts, sampling_params=None, use_tqdm=True):
        self.calls.append((prompts, sampling_params))
        params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        if self.pushes:
            self.count += sum(each.max_tokens * each.n for each in params if each.extra_args)
        return [Output([Answer([1] * each.max_tokens)] * each.n) for each in params]

    def get_default_sampling_params(self):
        return Params(max_tokens=2)

    def collective_rpc(self, method):
        assert method == "steering_report"
        rows = [{"features": self.features, "name": name, "block": 0, "count": self.count} for name in ("loop", "zh")]
        return [{"counts": rows, "errors": self.errors, "num_errors": len(self.errors)}]

    def sleep(self, level):
        return f"asleep {level}"


@pytest.fixture
def engine(make_set):
    return Engine(make_set())


@pytest.fixture
def llm(engine, make_set):
    return SteeredLLM(engine, make_set())


PROMPTS = [{"prompt_token_ids": [1, 2, 3]}, {"prompt_token_ids": [1, 2]}, {"prompt_token_ids": [5]}]


def test_unarmed_it_is_the_engine(llm, engine):
    params = Params()
    llm.generate(PROMPTS, sampling_params=params, use_tqdm=False)
    assert engine.calls == [(PROMPTS, params)]
    assert llm.sleep(2) == "asleep 2"
    with pytest.raises(AttributeError):
        _ = llm.nothing


def test_rows_go_in_one_call_each_with_its_own_settings(llm, engine, make_set):
    params = Params(temperature=0.9, top_p=0.8)
    rows = [RowSettings(), RowSettings(1.5, sampling={"temperature": 0.3}), RowSettings(sampling={"top_p": 1.0})]
    with llm.armed(rows):
        llm.generate(PROMPTS, sampling_params=params, use_tqdm=False)
    [(prompts, given)] = engine.calls
    assert prompts[0] == PROMPTS[0] and prompts[2] == PROMPTS[2]
    assert prompts[1] == {**PROMPTS[1], "cache_salt": rows[1].salt(fingerprint(make_set()), 2)}
    assert [each.temperature for each in given] == [0.9, 0.3, 0.9]
    assert [each.top_p for each in given] == [0.8, 0.8, 1.0]
    assert [each.extra_args for each in given] == [None, rows[1].extra_args(fingerprint(make_set())), None]
    assert given[0] is params and params.temperature == 0.9 and params.extra_args is None


def test_prompts_and_parameters_may_come_in_every_form(llm, engine):
    with llm.armed([RowSettings(1.0), RowSettings(1.0), RowSettings(1.0, "all")]):
        prompts = ["text", [1, 2], {"prompt": "text", "cache_salt": "mine"}]
        llm.generate(prompts, [Params(max_tokens=n) for n in (1, 2, 3)])
    [(prompts, given)] = engine.calls
    assert prompts[0]["prompt"] == "text" and prompts[1]["prompt_token_ids"] == [1, 2]
    assert prompts[2]["cache_salt"].endswith("|mine")
    assert len({prompt["cache_salt"] for prompt in prompts}) == 3
    assert [each.max_tokens for each in given] == [1, 2, 3]
    with llm.armed([RowSettings(1.0)]):
        llm.generate("text")
    assert engine.calls[1][1][0].max_tokens == 2


def test_other_extra_arguments_are_kept(llm, engine):
    with llm.armed([RowSettings({"zh": 2.0})]):
        llm.generate(PROMPTS[:1], Params(extra_args={"other": 1}))
    extra = engine.calls[0][1][0].extra_args
    assert extra["other"] == 1 and extra["steer"] == '{"zh": 2.0}'


def test_an_engine_that_does_not_push_is_caught(make_set):
    llm = SteeredLLM(Engine(make_set(), pushes=False), make_set())
    with llm.armed([RowSettings(), RowSettings()]):
        llm.generate(PROMPTS[:2], Params())
    with pytest.raises(ValueError, match="8 tokens, but only 0 positions"), llm.armed([RowSettings(1.0)]):
        llm.generate(PROMPTS[:1], Params(n=2))
    llm.generate(PROMPTS, Params())  # it is disarmed again


def test_what_a_worker_could_not_steer_is_raised(engine, llm, make_set):
    generate = engine.generate

    def failing(*args, **kwargs):
        engine.errors.append("request 4: nonsense")
        return generate(*args, **kwargs)

    engine.generate = failing
    with pytest.raises(ValueError, match="request 4: nonsense"), llm.armed([RowSettings(1.0)]):
        llm.generate(PROMPTS[:1], Params())


def test_an_engine_that_cannot_steer_is_refused(make_set):
    class Plain(Engine):
        def collective_rpc(self, method):
            raise NotImplementedError(method)

    with pytest.raises(ValueError, match="cannot steer.*engine_arguments"):
        SteeredLLM(Plain(make_set()), make_set())
    with pytest.raises(ValueError, match="not along.*engine_arguments"):
        SteeredLLM(Engine(make_set(seed=1)), make_set())


@pytest.mark.parametrize(
    ("rows", "params", "message"),
    [
        ([RowSettings(1.0)], Params(), "1 rows are armed, but 3 prompts"),
        ([RowSettings({"ko": 1.0})] * 3, Params(), "'ko', which is not in the feature set. Known: loop, zh"),
        ([RowSettings(1.0)] * 3, [Params()] * 2, "2 sampling parameters for 3 prompts"),
        ([RowSettings(1.0)] * 3, Params(extra_args={"steer": 1}), "a `steer` of their own"),
        ([RowSettings(sampling={"heat": 1})] * 3, Params(), "'heat', which is no sampling parameter"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_anything_is_generated(llm, engine, rows, params, message):
    with pytest.raises(ValueError, match=message), llm.armed(rows):
        llm.generate(PROMPTS, params)
    assert engine.calls == []


def test_without_features_rows_differ_in_sampling_only(engine):
    def report(method):
        raise NotImplementedError(method)

    engine.collective_rpc = report  # a plain engine
    llm = SteeredLLM(engine, None)
    with llm.armed([RowSettings(), RowSettings(sampling={"temperature": 0.0})]):
        llm.generate(PROMPTS[:2], Params())
    [(prompts, params)] = engine.calls
    assert prompts == PROMPTS[:2] and [each.temperature for each in params] == [1.0, 0.0]
    with pytest.raises(ValueError, match="no `feature_set` was given"), llm.armed([RowSettings(1.0)]):
        pass


def test_it_cannot_be_armed_twice(llm):
    with llm.armed([]), pytest.raises(ValueError, match="armed already"), llm.armed([]):
        pass
