import pytest

from sae_posttrain.serving.guard import read_reports, require_pushed
from sae_posttrain.serving.row_settings import RowSettings

ROWS = [RowSettings(), RowSettings(1.0), RowSettings({"zh": -1.0, "loop": 0.0})]


def report(loop, zh, errors=(), features="f", num_errors=None):
    counts = [
        {"features": features, "name": "loop", "block": 3, "count": loop},
        {"features": features, "name": "zh", "block": 5, "count": zh},
    ]
    return {"counts": counts, "errors": list(errors), "num_errors": len(errors) if num_errors is None else num_errors}


def read(*reports):
    return read_reports(reports, "f", "Start it anew.")


def test_counts_that_cover_the_steered_answers_pass():
    # answers of 9, 4 and 2 tokens: loop is pushed in the second row, zh in the second and the third
    require_pushed(read(report(10, 20)), read(report(14, 26)), ROWS, [9, 4, 2])
    require_pushed(read(report(10, 20)), read(report(19, 30)), ROWS, [9, 4, 2])  # preempted rows are pushed again


def test_a_missing_push_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="6 tokens, but only 5 positions were pushed along 'zh' at block 5"):
        require_pushed(read(report(10, 20)), read(report(14, 25)), ROWS, [9, 4, 2])
    with pytest.raises(ValueError, match="4 tokens, but only 0 .* 'loop' at block 3.*enforce_eager"):
        require_pushed(read(report(10, 20)), read(report(10, 26)), ROWS, [9, 4, 2])


def test_every_worker_has_to_have_pushed():
    before = read(report(0, 0), report(0, 0))
    with pytest.raises(ValueError, match="'loop'"):
        require_pushed(before, read(report(4, 6), report(0, 6)), ROWS, [9, 4, 2])


def test_errors_of_requests_are_raised():
    before = read(report(0, 0, ["old"]))
    with pytest.raises(ValueError, match="1 requests were not steered as they asked. The first: request 7"):
        require_pushed(before, read(report(9, 9, ["old", "request 7"])), ROWS, [1, 1, 1])
    with pytest.raises(ValueError, match="3 requests .* The first: b"):
        require_pushed(before, read(report(9, 9, ["b", "c"], num_errors=4)), ROWS, [1, 1, 1])


def test_an_engine_of_other_features_is_an_error():
    with pytest.raises(ValueError, match=r"feature sets \['g'\], not along 'f'. Start it anew."):
        read(report(0, 0, features="g"))
