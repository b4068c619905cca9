"""The worker in front of stand-ins; the slow vLLM suite has it in front of vLLM's."""

import pytest
import torch

from sae_posttrain.serving.guard import read_reports
from sae_posttrain.serving.pushes import block_vectors, fingerprint

from .conftest import Model, PlainBlock, RunnerV1, RunnerV2


@pytest.mark.parametrize("runner", [RunnerV1, RunnerV2])
def test_only_the_steered_request_is_pushed_from_its_last_prompt_token_on(make_worker, make_set, runner):
    worker = make_worker(runner=runner)
    plain = worker.run([("a", 0, 3), ("b", 0, 2)], new=[("a", None, 3), ("b", None, 2)])
    pushed = worker.run([("b", 0, 2), ("a", 0, 3)], new=[("a", {"steer": 1.5}, 3), ("b", None, 2)])
    rows = pushed - plain[[3, 4, 0, 1, 2]]
    assert rows[:4].abs().max() == 0
    loop, zh = (vectors for vectors in block_vectors(make_set()).values())
    # block 0 adds its push to what block 1 doubles into 0.5 h and its residual h; block 1 adds its own
    expected = 1.5 * (1.5 * loop[0] + zh[1])
    assert torch.allclose(rows[4], expected, atol=1e-6)


def test_a_block_that_returns_the_stream_is_pushed_too(make_worker, make_set):
    worker = make_worker(model=lambda: Model(PlainBlock))
    pushed = worker.run([("a", 4, 1)], new=[("a", {"steer": "zh=2"}, 3)])
    zh = block_vectors(make_set())[1][1]
    assert torch.allclose(pushed[0], torch.full((8,), 4.0) + 2 * zh, atol=1e-6)


def test_positions_all_push_the_prompt_too(make_worker):
    worker = make_worker()
    plain = worker.run([("a", 0, 3)], new=[("a", None, 3)])
    pushed = worker.run([("a", 0, 3)], new=[("a", {"steer": 1, "steer_positions": "all"}, 3)])
    assert ((pushed - plain).abs().amax(dim=1) > 0).all()


def test_what_one_step_wrote_does_not_reach_the_next(make_worker):
    worker = make_worker()
    worker.run([("a", 4, 4)], new=[("a", {"steer": 1}, 3)])
    plain = worker.execute_dummy_batch()
    assert torch.equal(plain, Model()(torch.ones(4, 8)))
    worker.run([("a", 8, 4)])
    assert torch.equal(worker.run([("b", 0, 4)], new=[("b", None, 4)], finished=["a"]), plain)


def test_the_report_counts_each_name_where_it_has_features(make_worker, make_set):
    worker = make_worker()
    worker.run([("a", 0, 3)], new=[("a", {"steer": 1}, 3)])
    worker.run([("a", 3, 1), ("b", 1, 2)], new=[("b", {"steer": "loop=-0.5"}, 2)])
    report = read_reports([worker.steering_report()], fingerprint(make_set()), "")
    assert report.counts == {(0, "loop"): 4, (1, "zh"): 2}
    assert report.num_errors == 0


@pytest.mark.parametrize(
    ("extra", "length", "message"),
    [
        ({"steer": "lop=1"}, 3, "'lop', which this engine does not know.*Did you mean 'loop'"),
        ({"steer": "fast"}, 3, "Write a number"),
        ({"steer": 1, "steer_features": "0123"}, 3, "no feature set '0123'"),
        ({"steer": 1, "steer_positions": "prompt"}, 3, "must be 'generated' or 'all'"),
        ({"steer_strength": 1}, 3, "'steer_strength' is unknown"),
        ({"steer_positions": "all"}, 3, "'steer' is missing"),
        ({"steer": 1}, None, "how long its prompt is"),
    ],
)
def test_a_request_that_cannot_be_steered_is_reported_and_the_engine_goes_on(make_worker, extra, length, message):
    import re

    worker = make_worker()
    plain = worker.run([("a", 0, 3)], new=[("a", None, 3)])
    assert torch.equal(worker.run([("b", 0, 3)], new=[("b", extra, length)]), plain)
    report = worker.steering_report()
    assert report["num_errors"] == 1
    assert re.search(message, report["errors"][0])
    assert "request b" in report["errors"][0]


def test_errors_are_counted_beyond_those_that_are_kept(make_worker):
    worker = make_worker()
    worker.run([], new=[(str(i), {"steer": "x"}, 2) for i in range(130)])
    report = worker.steering_report()
    assert report["num_errors"] == 130
    assert len(report["errors"]) == 100
    assert "request 129" in report["errors"][-1]


def test_strength_zero_is_a_plain_request(make_worker):
    worker = make_worker()
    worker.run([("a", 0, 3)], new=[("a", {"steer": "loop=0"}, 3)])
    assert {row["count"] for row in worker.steering_report()["counts"]} == {0}


def test_several_sets_are_pushed_by_their_names(make_worker, make_set):
    first, second = make_set(), make_set(names=("loop",), blocks=(1,), seed=1)
    worker = make_worker({"a": first, "b": second})
    plain = worker.run([("p", 4, 1)], new=[("p", None, 2)])
    by_set = worker.run([("q", 4, 1)], new=[("q", {"steer": "b=1"}, 2)])
    in_full = worker.run([("r", 4, 1)], new=[("r", {"steer": "b/loop=1"}, 2)])
    by_fingerprint = worker.run([("s", 4, 1)], new=[("s", {"steer": 1, "steer_features": fingerprint(second)}, 2)])
    assert torch.allclose(by_set - plain, block_vectors(second)[1], atol=1e-6)
    assert torch.equal(by_set, in_full)
    assert torch.equal(by_set, by_fingerprint)
    both = worker.run([("t", 4, 1)], new=[("t", {"steer": "a/loop=1, b/loop=1"}, 2)])
    assert torch.allclose(both - plain, 1.5 * block_vectors(first)[0][0] + block_vectors(second)[1], atol=1e-6)


def test_a_runner_of_neither_kind_is_an_error(make_worker):
    class Other(RunnerV1):
        _prepare_inputs = property(lambda self: (_ for _ in ()).throw(AttributeError))

    with pytest.raises(ValueError, match="neither `_prepare_inputs` nor `prepare_inputs`"):
        make_worker(runner=Other)


def test_a_model_without_one_list_of_blocks_is_an_error(make_worker):
    class Two(Model):
        def __init__(self):
            super().__init__()
            self.other = Model()

    with pytest.raises(ValueError, match="one list of 2 decoder blocks; found 2 at model., 2 at other.model."):
        make_worker(model=Two)


def test_blocks_of_the_language_model_are_taken(make_worker, make_set):
    class Seeing(Model):
        def __init__(self):
            super().__init__()
            self.vision, self.language = Model(), Model()

        def get_language_model(self):
            return self.language

    worker = make_worker(model=Seeing)
    assert len(worker.model_runner.model.language.model.layers[0]._forward_hooks) == 1
    assert len(worker.model_runner.model.vision.model.layers[0]._forward_hooks) == 0
