from sae_posttrain.training.watch.record import append, begin, read


def test_a_new_run_keeps_the_file_of_an_old_one_aside(tmp_path):
    path = tmp_path / "run" / "watch.jsonl"
    append(path, {"step": 2, "rates": {}, "identity": "a"})
    assert begin(path, 0, "b") == [] and read(path) == []
    assert [watch["step"] for watch in read(path.with_name("watch.jsonl.old"))] == [2]


def test_what_came_after_the_checkpoint_is_removed(tmp_path):
    path = tmp_path / "watch.jsonl"
    for step in (2, 4):
        append(path, {"step": step, "rates": {}, "identity": "a", "answers": [{"answer": "打开"}]})
    with path.open("a") as file:
        file.write('{"step": 6, "ra')
    assert [watch["step"] for watch in begin(path, 3, "a")] == [2]
    assert path.read_text(encoding="utf-8").count("\n") == 1 and "打开" in path.read_text(encoding="utf-8")


def test_a_file_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path):
    path = tmp_path / "watch.jsonl"
    append(path, {"step": 2, "rates": {}})
    whole = path.read_bytes()
    path.write_bytes(whole + '{"step": 4, "rates": {}, "answer": "打'.encode()[:-1])
    assert [watch["step"] for watch in read(path)] == [2]
