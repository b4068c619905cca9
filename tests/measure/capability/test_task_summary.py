import pytest

from sae_posttrain.measure.capability.task_summary import (
    add_intervals,
    check_same_items,
    compare_tasks,
    format_tasks,
    pool_group,
)
from sae_posttrain.measure.statistics.intervals import wilson


def make_items(values, metric="acc", prompt="p"):
    return [
        {"doc_id": i, "doc_hash": f"d{i}", "prompt_hash": f"{prompt}{i}", "metrics": {metric: value}}
        for i, value in enumerate(values)
    ]


def make_task(values, metric="acc", value=None, higher=True):
    mean = sum(values) / len(values) if value is None else value
    return {
        "metrics": add_intervals({metric: {"value": mean, "higher_is_better": higher}}, make_items(values, metric))
    }


def result(tasks, groups=None):
    return {"tasks": tasks, "groups": groups or {}}


def pool(*tasks):
    return pool_group([task["metrics"] for task in tasks])


def compare(before, after, margin=0.02, higher=True):
    task = make_task(after, higher=higher)
    return compare_tasks(result({"t": task}), {"t": make_items(before)}, {"t": make_items(after)}, margin)["tasks"][
        "t"
    ]


def test_rate_has_the_wilson_interval_and_anything_else_has_none():
    acc = make_task([1.0, 0.0, 1.0, 1.0])["metrics"]["acc"]
    assert (acc["value"], acc["n"]) == (0.75, 4)
    assert (acc["low"], acc["high"]) == wilson(3, 4)
    assert make_task([1.0, 0.5])["metrics"]["acc"]["low"] is None
    assert (
        make_task([1, 0], metric="mcc", value=0.3)["metrics"]["mcc"]["low"] is None
    )  # of 0 and 1, but not their mean
    pairs = add_intervals({"ppl": {"value": 9.0, "higher_is_better": False}}, make_items([[-3.0, 2]], "ppl"))
    assert (pairs["ppl"]["n"], pairs["ppl"]["low"]) == (1, None)


def test_items_without_a_metric_do_not_count_in_it():
    items = [*make_items([1, 1]), {"doc_id": 2, "doc_hash": "d2", "prompt_hash": "p2", "metrics": {}}]
    assert add_intervals({"acc": {"value": 1.0, "higher_is_better": True}}, items)["acc"]["n"] == 2


def test_group_pools_the_items_of_its_tasks():
    tasks = make_task([1, 1, 1]), make_task([0])
    assert pool(*tasks)["acc"]["value"] == 0.75  # 3 of 4, not the mean of 1 and 0
    assert pool(*tasks)["acc"]["low"] == wilson(3, 4)[0]
    assert pool(*tasks, make_task([1], metric="exact_match")) == {}
    assert pool(*tasks, make_task([1], higher=False)) == {}
    assert pool(*tasks, make_task([0.5])) == {}


def test_non_inferior_only_if_a_loss_of_the_margin_is_ruled_out():
    right = [1] * 80 + [0] * 20
    same = compare(right, right)
    # nothing changed: 0 ± the Wilson bound of 0 of 100, 3.7 points, so 2 points are not ruled out
    assert same["metrics"]["acc"]["difference"] == 0
    assert same["metrics"]["acc"]["verdict"] == "undecided"
    assert compare(right, right, margin=0.04)["metrics"]["acc"]["verdict"] == "non-inferior"
    worse = [1] * 70 + [0] * 30
    assert compare(right, worse, margin=0.1)["metrics"]["acc"]["verdict"] == "undecided"
    # where lower is better, the same change is an improvement
    assert compare(right, worse, margin=0.01, higher=False)["metrics"]["acc"]["verdict"] == "non-inferior"
    assert compare(worse, right, margin=0.01, higher=False)["metrics"]["acc"]["verdict"] == "inferior"
    assert compare(right, worse, margin=0.01)["metrics"]["acc"]["verdict"] == "inferior"
    assert compare(right, right, higher=None)["metrics"]["acc"]["verdict"] is None


def test_items_are_paired_by_document_whatever_their_order():
    before = make_items([1, 0, 0, 1])
    after = list(reversed(make_items([1, 0, 0, 1], prompt="q")))
    after[0]["prompt_hash"] = "p3"
    compared = compare_tasks(result({"t": make_task([1, 0, 0, 1])}), {"t": before}, {"t": after}, 0.02)["tasks"]["t"]
    assert compared["metrics"]["acc"]["p_value"] == 1.0
    assert (compared["metrics"]["acc"]["difference"], compared["num_pairs"]) == (0, 4)
    assert compared["num_other_prompts"] == 3


def test_equal_documents_are_paired_in_their_order():
    before, after = make_items([1, 0, 1]), make_items([0, 0, 1])
    for item in [*before, *after]:
        item["doc_hash"] = "same"
    compared = compare_tasks(result({"t": make_task([0, 0, 1])}), {"t": before}, {"t": after}, 0.02)["tasks"]["t"]
    assert compared["metrics"]["acc"]["difference"] == pytest.approx(-1 / 3)


def test_other_documents_are_refused():
    def items(*hashes):
        return [{"doc_hash": doc_hash} for doc_hash in hashes]

    check_same_items("t", ["a", "b", "b"], items("b", "a", "b"), "other")
    with pytest.raises(ValueError, match="other was not asked the same documents of t: 1 are only here, 2 only there"):
        check_same_items("t", ["a", "b"], items("a", "c", "c"), "other")


def test_table_says_what_was_compared_and_what_was_not():
    tasks = {"t": make_task([1, 0]), "loss": make_task([2.5, 3.5], metric="ppl", higher=False)}
    items = {"t": make_items([1, 0]), "loss": make_items([2.5, 3.5], "ppl")}
    groups = {"g": {"tasks": ["t"], "metrics": pool(tasks["t"])}}
    comparison = {
        "other": "base",
        "other_model": "m0",
        "different_settings": ["seed"],
        **compare_tasks(result(tasks, groups), items, items, 0.02),
    }
    text = format_tasks({"settings": {"model": "m"}, "tasks": tasks, "groups": groups, "comparison": comparison})
    assert [line.split()[:4] for line in text.splitlines()[3:6]] == [
        ["t", "acc", "2", "50.00"],
        ["loss", "ppl", "2", "3"],
        ["g", "acc", "2", "50.00"],
    ]
    assert "Over all items of their tasks: g." in text
    assert "Difference to m0 (base), paired by document:" in text
    assert "undecided" in text
    assert "hence not compared: loss." in text
    assert "Not the same in both: seed." in text
