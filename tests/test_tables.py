from sae_posttrain.tables import align


def test_columns_are_below_one_another():
    rows = [("name", "where", "rate"), ("a", "block 12", "3.1"), ("longer", "", "10.25")]
    assert align(rows, num_left=2) == [
        "name    where      rate",
        "a       block 12    3.1",
        "longer            10.25",
    ]
    assert align([["1", "22"], ["333", "4"]]) == ["  1  22", "333   4"]


def test_lines_end_without_spaces():
    assert align([("a", "long"), ("b", "")], num_left=2) == ["a  long", "b"]


def test_no_rows_give_no_lines():
    assert align([]) == []
