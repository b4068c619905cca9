import json
import shutil
import subprocess
import sys

import pytest

from sae_posttrain import evaluate
from sae_posttrain.measure.answers import evaluation as evaluation_module
from sae_posttrain.measure.answers.generate import generate_answers
from sae_posttrain.measure.answers.summary import format_evaluation


def test_answers_and_rates_are_written(run, tmp_path, read_answers):
    result = run()
    answers = read_answers("run")
    assert {answer["id"] for answer in answers} == {0, 1, 2, 3, 4}
    keys = {"id", "sample", "lang", "prompt", "answer", "num_tokens", "finished", "spans", "loop", "any", "unexpected"}
    assert all(keys | {"right_language"} <= answer.keys() for answer in answers)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8")) == result
    assert {"torch", "transformers", "regex"} <= result["versions"].keys()
    assert result["settings"]["seed"] == 0
    assert result["overall"]["num_answers"] == 5
    assert not list((tmp_path / "run").glob("*.part"))


def test_spans_are_offsets_into_the_answer(run, answer_with, read_answers, prompt_rows):
    answer_with({row["prompt"]: "a 保存 b" for row in prompt_rows})
    run()
    for answer in read_answers("run"):
        for span in answer["spans"]:
            assert answer["answer"][span["start"] : span["start"] + len(span["text"])] == "保存"
        assert len(answer["spans"]) == (answer["lang"] != "zh")


def test_every_answer_has_its_loop(run, answer_with, read_answers, prompt_rows):
    looping = "먼저 " + "click OK, " * 9  # 7 bytes, then 10 for each cycle
    answer_with({**{row["prompt"]: "x" for row in prompt_rows}, "저장": looping}, finished=False)
    run()
    loops = {answer["prompt"]: answer["loop"] for answer in read_answers()}
    # the blank before the first cycle is that which ends every cycle
    expected = {"endless": True, "loop_any": True, "near_loop": False, "onset": 6, "period": 10, "span": 91}
    assert loops.pop("저장") == expected
    for loop in loops.values():
        assert loop == {**dict.fromkeys(expected, False), "onset": None, "period": None, "span": 0}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who?", "reference": "习近平"},
        {"prompt": "Who?", "completion": [{"role": "assistant", "content": "习近平"}]},
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "习近平"}]},
    ],
)
def test_what_the_reference_has_is_excused(row, run, answer_with, read_answers):
    answer_with({"Who?": "It is 习近平"})
    run(data=[{"lang": "en", **row}])
    assert read_answers("run")[0]["spans"][0]["excused"] == "reference"


def test_cut_thinking_that_the_template_opened_is_no_answer(run, answer_with, read_answers, tokenizer, monkeypatch):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}{% if think %}<think>\n{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    row = {"id": 0, "lang": "ko", "prompt": [{"role": "user", "content": "저장"}]}
    for folder, think in (("open", True), ("closed", False)):
        answer_with({"저장": "用户想要保存", "저장<think>\n": "用户想要保存"}, finished=False)
        run(folder, [row], chat_template_kwargs={"think": think})
    judged = {folder: read_answers(folder)[0] for folder in ("open", "closed")}
    assert [judged[folder]["unexpected"] for folder in judged] == [False, True]
    assert [judged[folder]["right_language"] for folder in judged] == [None, False]
    assert judged["open"]["any"] and judged["open"]["num_unexpected_in_think"] == 6


def test_data_can_be_a_file(run, tmp_path, prompt_rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, prompt_rows)), encoding="utf-8")
    assert run(data=path) == run(folder="rows")
    assert run(folder="first", data=str(path), limit=2)["overall"]["num_answers"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": []}, "No prompts in the data"),
        ({"data": "missing.jsonl"}, "no data file missing.jsonl"),
        ({"target_lang": "en"}, "No row can show a switch into 'en'"),
        ({"batch_size": 0}, "`batch_size` must be 1 or more, got 0"),
        ({"temperature": -1}, "`temperature` must be 0"),
        ({"top_p": 0}, "`top_p` must be above 0"),
        ({"compare": "nowhere"}, "nowhere holds no finished evaluation"),
    ],
)
def test_wrong_input_is_refused_before_the_model_is_loaded(settings, message, tmp_path, prompt_rows):
    with pytest.raises(ValueError, match=message):
        evaluate("no-such/model", output_dir=tmp_path / "run", **{"data": prompt_rows, **settings})
    assert not (tmp_path / "run").exists()


def test_answers_that_do_not_fit_the_model_are_refused(run):
    with pytest.raises(ValueError, match="`max_new_tokens` to 243 or less"):
        run(max_new_tokens=256)


def test_interrupted_run_goes_on_to_the_same_answers(run, tmp_path, monkeypatch):
    settings = {"num_samples": 2, "max_new_tokens": 12}  # 10 answers, 5 batches
    whole = run(folder="whole", **settings)

    calls = []

    def fail_at_third_batch(*args, **kwargs):
        calls.append(kwargs["seed"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate_answers(*args, **kwargs)

    monkeypatch.setattr(evaluation_module, "generate_answers", fail_at_third_batch)
    with pytest.raises(KeyboardInterrupt):
        run(folder="cut", **settings)
    path = tmp_path / "cut" / "answers.jsonl"
    assert len(path.read_bytes().splitlines()) == 4
    whole_lines = (tmp_path / "whole" / "answers.jsonl").read_bytes().splitlines(keepends=True)
    # the next batch came half: one whole line, and one that is cut within a character
    path.write_bytes(path.read_bytes() + whole_lines[4] + whole_lines[5][:40] + b"\xec")

    result = run(folder="cut", **settings)
    assert len(calls) == 3 + 3  # batches 3, 4 and 5 only
    assert len(set(calls)) == 5  # every batch has its own seed, the third the same one again
    assert path.read_bytes() == b"".join(whole_lines)
    assert result == whole


def forget_loops(path):
    """Makes an `answers.jsonl` what a version that did not measure loops wrote."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        del line["loop"]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def test_half_of_an_evaluation_without_loops_is_not_finished(run, tmp_path):
    run()
    (tmp_path / "run" / "evaluation.json").unlink()
    path = tmp_path / "run" / "answers.jsonl"
    forget_loops(path)
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    with pytest.raises(ValueError, match="run holds 2 of 5 answers, written by a version that did not measure loops"):
        run()


def test_whole_evaluation_without_loops_can_be_used_on(run, tmp_path):
    run(folder="before")
    (tmp_path / "before" / "evaluation.json").unlink()
    forget_loops(tmp_path / "before" / "answers.jsonl")
    old = run(folder="before")
    assert old["overall"]["endless"] is None and old["overall"]["truncated"] is not None
    assert "did not measure loops" in format_evaluation(old)
    for name in ("endless", "loop_any", "near_loop"):  # evaluation.json of that version
        del old["overall"][name], old["groups"]["ko"][name]
    assert "did not measure loops" in format_evaluation(old)

    new = run(folder="after", seed=1, compare=tmp_path / "before")
    assert new["overall"]["endless"]["n"] == 5
    assert new["comparison"]["overall"]["endless"] is None
    assert new["comparison"]["overall"]["any"] is not None
    assert format_evaluation(new)


def test_finished_run_is_returned_without_the_model(run, monkeypatch):
    first = run()

    def fail(*_args, **_kwargs):
        raise AssertionError("the model was used")

    monkeypatch.setattr(evaluation_module, "generate_answers", fail)
    assert run() == first


def test_folder_with_other_settings_is_refused(run, make_model, tmp_path, prompt_rows):
    run()
    with pytest.raises(ValueError, match=r"temperature was 1\.0, is 0.5; seed was 0, is 3. Pick another `output_dir`"):
        run(temperature=0.5, seed=3)
    with pytest.raises(ValueError, match="prompts_sha256 was"):
        run(data=[{**row, "prompt": "other"} for row in prompt_rows])
    with pytest.raises(ValueError, match="model_fingerprint was"):
        run(model=make_model(seed=1))
    (tmp_path / "run" / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"has answers but no settings\.json"):
        run()


def test_comparison_with_other_prompts_is_refused(run, tmp_path, prompt_rows):
    run(folder="before")
    more = [*prompt_rows, {"id": 9, "lang": "ko", "prompt": "a"}, {"id": 8, "lang": "ko", "prompt": "b"}]
    message = r"2 are only here, 0 only there, and 0 have another prompt, e\.g\. \(9, 0, 'ko'"
    with pytest.raises(ValueError, match=message):
        run(folder="after", data=more, compare=tmp_path / "before")
    with pytest.raises(ValueError, match="1 have another prompt"):
        run(
            folder="after", data=[{**prompt_rows[0], "prompt": "other"}, *prompt_rows[1:]], compare=tmp_path / "before"
        )
    with pytest.raises(ValueError, match="measured switches into 'zh', this evaluation into 'ru'"):
        run(folder="after", target_lang="ru", compare=tmp_path / "before")


def test_model_and_adapter_folders_answer_like_the_loaded_model(
    run, make_model, tokenizer, tmp_path, read_answers, prompt_rows
):
    peft = pytest.importorskip("peft", reason="adapters need peft")
    model = make_model()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    evaluate(
        tmp_path / "base",
        prompt_rows,
        output_dir=tmp_path / "from_folder",
        max_new_tokens=8,
        device="cpu",
        progress=False,
    )
    run(folder="loaded", batch_size=32)
    assert read_answers("from_folder") == read_answers("loaded")

    loaded = type(model).from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(loaded, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    run(folder="peft", model=adapted, batch_size=32)
    evaluate(
        tmp_path / "adapter",
        prompt_rows,
        output_dir=tmp_path / "from_adapter",
        max_new_tokens=8,
        device="cpu",
        progress=False,
    )
    assert read_answers("from_adapter") == read_answers("peft")
    assert read_answers("peft") != read_answers("loaded")


def test_nothing_written_holds_a_local_path(make_model, tokenizer, prompt_rows, tmp_path):
    for seed, name in enumerate(("before", "after")):
        make_model(seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, prompt_rows)), encoding="utf-8")
    settings = {"max_new_tokens": 2, "device": "cpu", "progress": False, "model_kwargs": {"cache_dir": str(tmp_path)}}
    evaluate(str(tmp_path / "before"), data, output_dir=tmp_path / "out_before", **settings)
    result = evaluate(
        tmp_path / "after",
        str(data),
        output_dir=tmp_path / "out_after",
        tokenizer=tmp_path / "before",
        compare=tmp_path / "out_before",
        **settings,
    )
    assert (result["settings"]["model"], result["settings"]["tokenizer"]) == ("after", "before")
    assert (result["comparison"]["other"], result["comparison"]["other_model"]) == ("out_before", "before")
    written = [json.dumps(result), *(path.read_text(encoding="utf-8") for path in tmp_path.glob("out_*/*"))]
    assert len(written) == 1 + 2 * 3
    assert not any(str(tmp_path) in text for text in written)


def test_moved_model_is_still_the_same(make_model, tokenizer, prompt_rows, tmp_path):
    settings = {"output_dir": tmp_path / "out", "max_new_tokens": 2, "device": "cpu", "progress": False}
    make_model().save_pretrained(tmp_path / "here" / "ko")
    tokenizer.save_pretrained(tmp_path / "here" / "ko")
    first = evaluate(tmp_path / "here" / "ko", prompt_rows, **settings)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert evaluate(tmp_path / "there" / "ko", prompt_rows, **settings) == first
    make_model(seed=1).save_pretrained(tmp_path / "there" / "ko")
    with pytest.raises(ValueError, match="model_fingerprint was"):
        evaluate(tmp_path / "there" / "ko", prompt_rows, **settings)


def test_measuring_loads_no_torch_before_it_generates():
    code = "import sys, sae_posttrain.measure.answers.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
