import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_posttrain.measure import generate as generate_module
from sae_posttrain.measure.generate import evaluate, format_evaluation, generate_answers
from sae_posttrain.measure.intervals import mcnemar, wilson

ROWS = [
    {"id": 0, "lang": "ko", "prompt": "저장"},
    {"id": 1, "lang": "ko", "prompt": "파일 열기"},
    {"id": 2, "lang": "ru", "prompt": "Файл"},
    {"id": 3, "lang": "zh", "prompt": "保存"},
    {"id": 4, "lang": "en", "prompt": "Open a file"},
]


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte, and four special tokens of their own ids: every text comes back as it was."""
    specials = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
    tokens = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}<|{{ 'assistant' if m['role'] == 'assistant' else 'user' }}|>{{ m['content'] }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return fast


@pytest.fixture
def run(tmp_path, tokenizer, make_model):
    """Evaluates the tiny model in a folder of that name; settings can be overridden."""

    def run(folder="run", data=ROWS, **settings):
        defaults = {"tokenizer": tokenizer, "max_new_tokens": 8, "batch_size": 2, "progress": False}
        model = settings.pop("model", None) or make_model()
        return evaluate(model, data, output_dir=tmp_path / folder, **{**defaults, **settings})

    return run


@pytest.fixture
def answer_with(monkeypatch, tokenizer):
    """Makes the model answer what is given for each prompt; samples of a prompt get its answers in turn."""

    def answer_with(answers, finished=True):
        num_given = {}

        def fixed(_model, _tokenizer, prompts, **_settings):
            texts = []
            for ids in prompts:
                prompt = tokenizer.decode(ids, skip_special_tokens=True)
                num_given[prompt] = num_given.get(prompt, -1) + 1
                given = answers[prompt]
                texts.append(given if isinstance(given, str) else given[num_given[prompt] % len(given)])
            return [tokenizer(text)["input_ids"] for text in texts], [finished] * len(prompts)

        monkeypatch.setattr(generate_module, "generate_answers", fixed)

    return answer_with


def read_answers(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_answers_and_rates_are_written(run, tmp_path):
    result = run()
    answers = read_answers(tmp_path / "run")
    assert {answer["id"] for answer in answers} == {0, 1, 2, 3, 4}
    keys = {"id", "sample", "lang", "prompt", "answer", "num_tokens", "finished", "spans", "any", "unexpected"}
    assert all(keys | {"right_language"} <= answer.keys() for answer in answers)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8")) == result
    assert {"torch", "transformers", "regex"} <= result["versions"].keys()
    assert result["settings"]["seed"] == 0
    assert result["overall"]["num_answers"] == 5
    assert not list((tmp_path / "run").glob("*.part"))


def test_rates_count_what_the_answers_hold(run, answer_with):
    answer_with(
        {
            "저장": "먼저 保存 버튼",  # 2 unexpected Han
            "파일 열기": "`文件`을 엽니다",  # 2 Han, excused as code
            "Файл": "",
            "保存": "请点击保存",
            "Open a file": "Yes 然后点击保存",  # 6 unexpected Han, and 3 letters of its own
        }
    )
    result = run()
    overall, ko = result["overall"], result["groups"]["ko"]
    # 4 answers could switch into Chinese, the Chinese one could not
    assert (overall["num_answers"], overall["num_measured"]) == (5, 4)
    assert [overall["any"][t]["count"] for t in ("1", "2", "5")] == [3, 3, 1]
    assert [overall["unexpected"][t]["count"] for t in ("1", "2", "5")] == [2, 2, 1]
    low, high = wilson(2, 4)
    assert overall["unexpected"]["1"] == {"count": 2, "n": 4, "rate": 0.5, "low": low, "high": high}
    assert (ko["any"]["1"]["rate"], ko["unexpected"]["1"]["rate"]) == (1.0, 0.5)
    assert result["groups"]["zh"]["any"] is None
    assert result["groups"]["zh"]["right_language"]["rate"] == 1
    # the empty answer has no language, the English one is mostly Han
    assert (overall["right_language"]["count"], overall["right_language"]["n"]) == (3, 4)
    assert overall["empty"]["count"] == 1
    assert overall["truncated"]["count"] == 0
    # one token per byte: 먼저 保存 버튼 6+1+6+1+6 = 20; `文件`을 엽니다 8+3+1+9 = 21; 0; 5 * 3 = 15; 4+18 = 22
    assert overall["mean_tokens"] == pytest.approx((20 + 21 + 0 + 15 + 22) / 5)


def test_truncated_answers_are_counted(run, answer_with):
    answer_with({row["prompt"]: "x" for row in ROWS}, finished=False)
    assert run()["overall"]["truncated"]["rate"] == 1


def test_spans_are_offsets_into_the_answer(run, answer_with, tmp_path):
    answer_with({row["prompt"]: "a 保存 b" for row in ROWS})
    run()
    for answer in read_answers(tmp_path / "run"):
        for span in answer["spans"]:
            assert answer["answer"][span["start"] : span["start"] + len(span["text"])] == "保存"
        assert len(answer["spans"]) == (answer["lang"] != "zh")


def test_target_none_counts_every_foreign_script(run, answer_with):
    answer_with({row["prompt"]: "кнопка 保存" for row in ROWS})
    result = run(target_lang=None)
    # ru: only Han is foreign; zh: only Cyrillic
    assert result["overall"]["num_measured"] == 5
    assert {lang: group["any"]["5"]["rate"] for lang, group in result["groups"].items()} == {
        "ko": 1,
        "en": 1,
        "zh": 1,
        "ru": 0,
    }


def test_language_with_the_script_of_the_target_is_left_out(run, answer_with):
    rows = [{"lang": "uk", "prompt": "Файл"}, {"lang": "ko", "prompt": "저장"}]
    answer_with({"Файл": "кнопка", "저장": "кнопка"})
    result = run(data=rows, target_lang="ru")
    assert result["groups"]["uk"]["any"] is None
    assert result["overall"]["any"]["1"]["rate"] == 1
    assert "does not show in the script of uk" in format_evaluation(result)


@pytest.mark.parametrize(
    ("row", "sent"),
    [
        ({"prompt": "hi"}, "<|user|>hi<|end|><|assistant|>"),
        ({"prompt": [{"role": "user", "content": "hi"}]}, "<|user|>hi<|end|><|assistant|>"),
        (
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the answer"}]},
            "<|user|>hi<|end|><|assistant|>",
        ),
        (
            {"prompt": [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]},
            "<|user|>be<|end|><|user|>hi<|end|><|assistant|>",
        ),
    ],
)
def test_prompts_go_through_the_chat_template(row, sent, run, monkeypatch, tokenizer):
    seen = []

    def record(_model, _tokenizer, prompts, **_settings):
        seen.extend(tokenizer.decode(ids) for ids in prompts)
        return [[]] * len(prompts), [True] * len(prompts)

    monkeypatch.setattr(generate_module, "generate_answers", record)
    run(data=[{"lang": "ko", **row}])
    assert seen == [sent]


def test_plain_text_is_sent_without_template(run, monkeypatch, tokenizer):
    seen = []

    def record(_model, _tokenizer, prompts, **_settings):
        seen.extend(tokenizer.decode(ids) for ids in prompts)
        return [[]] * len(prompts), [True] * len(prompts)

    monkeypatch.setattr(generate_module, "generate_answers", record)
    run(data=[{"lang": "ko", "prompt": "hi"}], chat_template=False)
    assert seen == ["hi"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who?", "reference": "习近平"},
        {"prompt": "Who?", "completion": [{"role": "assistant", "content": "习近平"}]},
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "习近平"}]},
    ],
)
def test_what_the_reference_has_is_excused(row, run, answer_with, tmp_path):
    answer_with({"Who?": "It is 习近平"})
    run(data=[{"lang": "en", **row}])
    assert read_answers(tmp_path / "run")[0]["spans"][0]["excused"] == "reference"


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.jsonl.gz", "rows.json.gz"])
def test_data_files(name, run, answer_with, tmp_path):
    answer_with({row["prompt"]: "x" for row in ROWS})
    text = json.dumps(ROWS) if ".jsonl" not in name else "\n".join(map(json.dumps, ROWS))
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write(text)
    assert run(data=tmp_path / name)["overall"]["num_answers"] == 5
    assert run(folder="first", data=str(tmp_path / name), limit=2)["overall"]["num_answers"] == 2


def test_dataset_and_column_of_the_language(run, answer_with):
    datasets = pytest.importorskip("datasets", reason="rows of a datasets.Dataset")
    answer_with({row["prompt"]: "x" for row in ROWS})
    rows = datasets.Dataset.from_list([{"language": row["lang"], "prompt": row["prompt"]} for row in ROWS])
    assert run(data=rows, group_column="language")["groups"]["ko"]["num_answers"] == 2


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        ([], {}, "No prompts in the data"),
        ([{"prompt": "a"}], {}, "no column `lang`. It has: prompt. Name another column with `group_column`"),
        (
            [{"lang": "ko", "text": "a"}],
            {},
            r"a column `prompt` \(text or messages\) or `messages`. It has: lang, text",
        ),
        ([{"lang": "ko", "prompt": " "}], {}, "Row 0 of the data has an empty prompt"),
        ([{"lang": "tlh", "prompt": "a"}], {}, "unknown language 'tlh' in `lang`. Known: .*zh"),
        ([{"lang": "ko", "prompt": "a", "id": 7}] * 2, {}, "id 7 occurs twice with the language 'ko'"),
        (["text"], {}, "Row 0 of the data is a str"),
        ([{"lang": "ko", "prompt": [{"role": "user", "content": [{"type": "image"}]}]}], {}, "`content` is not text"),
        ("missing.jsonl", {}, "no data file missing.jsonl"),
        (ROWS, {"target_lang": "en"}, r"No row can show a switch into 'en'.*\(Latin\).*Latin is allowed everywhere"),
        (ROWS, {"target_lang": "xx"}, "Unknown language 'xx'"),
        (ROWS, {"batch_size": 0}, "`batch_size` must be 1 or more, got 0"),
        (ROWS, {"temperature": -1}, "`temperature` must be 0"),
        (ROWS, {"top_p": 0}, "`top_p` must be above 0"),
        (ROWS, {"compare": "nowhere"}, "nowhere holds no finished evaluation"),
    ],
)
def test_wrong_input_is_refused_before_the_model_is_loaded(data, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate("no-such/model", data, output_dir=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_model_without_tokenizer_is_refused(tmp_path, make_model):
    with pytest.raises(ValueError, match="Pass `tokenizer=`"):
        evaluate(make_model(), ROWS, output_dir=tmp_path / "run")


def test_template_that_is_missing_is_refused(run, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match="no chat template"):
        run(chat_template=True)
    two = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(ValueError, match="has 2 messages, which plain text cannot tell apart"):
        run(data=[{"lang": "ko", "prompt": two}])


def test_interrupted_run_goes_on_to_the_same_answers(run, tmp_path, monkeypatch):
    settings = {"num_samples": 2, "max_new_tokens": 12}  # 10 answers, 5 batches
    whole = run(folder="whole", **settings)

    calls = []

    def fail_at_third_batch(*args, **kwargs):
        calls.append(kwargs["seed"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate_answers(*args, **kwargs)

    monkeypatch.setattr(generate_module, "generate_answers", fail_at_third_batch)
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


def test_finished_run_is_returned_without_the_model(run, monkeypatch):
    first = run()

    def fail(*_args, **_kwargs):
        raise AssertionError("the model was used")

    monkeypatch.setattr(generate_module, "generate_answers", fail)
    assert run() == first


def test_folder_with_other_settings_is_refused(run, make_model, tmp_path):
    run()
    with pytest.raises(ValueError, match=r"temperature was 1\.0, is 0.5; seed was 0, is 3. Pick another `output_dir`"):
        run(temperature=0.5, seed=3)
    with pytest.raises(ValueError, match="prompts_sha256 was"):
        run(data=[{**row, "prompt": "other"} for row in ROWS])
    with pytest.raises(ValueError, match="model_fingerprint was"):
        run(model=make_model(seed=1))
    (tmp_path / "run" / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"has answers but no settings\.json"):
        run()


def test_comparison_pairs_the_same_prompts(run, answer_with, tmp_path):
    answer_with({row["prompt"]: "保存" for row in ROWS})
    run(folder="before")
    answer_with({**{row["prompt"]: "x" for row in ROWS}, "Файл": "보 保存"})
    result = run(folder="after", compare=tmp_path / "before")
    unexpected = result["comparison"]["overall"]["unexpected"]
    # the 4 answers that are not Chinese: 3 healed, 1 as before. 1/4 - 4/4
    assert (unexpected["difference"], unexpected["n"]) == (-0.75, 4)
    assert unexpected["p_value"] == mcnemar(3, 0) == 0.25
    assert result["comparison"]["groups"]["ko"]["any"]["difference"] == -1
    assert result["comparison"]["groups"]["zh"]["any"] is None
    # the Chinese answer is no longer Chinese
    assert result["comparison"]["groups"]["zh"]["right_language"]["difference"] == -1
    assert result["comparison"]["different_settings"] == []
    table = format_evaluation(result)
    assert "-75.00 [" in table
    assert "0.25" in table
    assert "comparison" not in json.loads((tmp_path / "after" / "evaluation.json").read_text(encoding="utf-8"))


def test_comparison_with_other_prompts_is_refused(run, tmp_path):
    run(folder="before")
    more = [*ROWS, {"id": 9, "lang": "ko", "prompt": "a"}, {"id": 8, "lang": "ko", "prompt": "b"}]
    message = r"2 are only here, 0 only there, and 0 have another prompt, e\.g\. \(9, 0, 'ko'"
    with pytest.raises(ValueError, match=message):
        run(folder="after", data=more, compare=tmp_path / "before")
    with pytest.raises(ValueError, match="1 have another prompt"):
        run(folder="after", data=[{**ROWS[0], "prompt": "other"}, *ROWS[1:]], compare=tmp_path / "before")
    with pytest.raises(ValueError, match="measured switches into 'zh', this evaluation into 'ru'"):
        run(folder="after", target_lang="ru", compare=tmp_path / "before")


def test_comparison_of_several_samples_resamples_prompts(run, answer_with, tmp_path):
    rows = [{"lang": "ko", "prompt": f"질문 {i}"} for i in range(6)]
    answer_with({row["prompt"]: ["保存", "x"] for row in rows})
    run(folder="before", data=rows, num_samples=2)
    answer_with(
        {row["prompt"]: ["x", "x"] for row in rows[:3]} | {row["prompt"]: ["保存", "保存"] for row in rows[3:]}
    )
    result = run(folder="after", data=rows, num_samples=2, compare=tmp_path / "before")
    any_ = result["comparison"]["overall"]["any"]
    # one of two before, none of two or two of two after
    assert (any_["difference"], any_["n"], any_["num_clusters"], any_["p_value"]) == (0, 12, 6, None)
    assert "count as independent" in format_evaluation(result)


def test_measuring_loads_no_torch_before_it_generates():
    code = "import sys, sae_posttrain.measure.generate as g; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_table_names_every_language(run, answer_with):
    answer_with({row["prompt"]: "保存" for row in ROWS})
    table = format_evaluation(run())
    assert "code-switching into zh" in table
    lines = {line.split()[0]: line for line in table.splitlines() if line}
    # ko: 2 of 2 answers, interval from 2/(2 + 3.84) = 34.24 %
    assert "100.00 [34.24, 100.00]" in lines["ko"]
    assert lines["zh"].split()[:4] == ["zh", "1", "-", "-"]
    assert lines["all"].split()[1] == "5"


def test_answer_does_not_depend_on_the_prompts_beside_it(make_model, tokenizer):
    model = make_model()
    prompts = [tokenizer(text)["input_ids"] for text in ("a", "a longer prompt", "저장")]
    together, finished = generate_answers(model, tokenizer, prompts, max_new_tokens=10, temperature=0)
    alone = [generate_answers(model, tokenizer, [ids], max_new_tokens=10, temperature=0)[0][0] for ids in prompts]
    assert together == alone
    assert [len(ids) == 10 for ids in together] == [not ended for ended in finished]


def test_answer_ends_before_its_end_token(make_model, tokenizer, monkeypatch):
    model = make_model()
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    new = torch.tensor([[10, 11, end, pad], [12, 13, 14, 15], [end, pad, pad, pad]])
    monkeypatch.setattr(
        model, "generate", lambda input_ids, attention_mask, generation_config: torch.cat([input_ids, new], dim=1)
    )
    answers, finished = generate_answers(model, tokenizer, [[5], [6, 7], [8]], max_new_tokens=4)
    assert answers == [[10, 11], [12, 13, 14, 15], []]
    assert finished == [True, False, True]


def test_padding_is_left_and_masked(make_model, tokenizer, monkeypatch):
    model, seen = make_model(), {}

    def generate(input_ids, attention_mask, generation_config):
        seen.update(ids=input_ids.tolist(), mask=attention_mask.tolist(), config=generation_config)
        return input_ids

    monkeypatch.setattr(model, "generate", generate)
    generate_answers(model, tokenizer, [[5], [6, 7, 8]], max_new_tokens=4, temperature=0.7, top_p=0.9)
    pad = tokenizer.pad_token_id
    assert seen["ids"] == [[pad, pad, 5], [6, 7, 8]]
    assert seen["mask"] == [[0, 0, 1], [1, 1, 1]]
    assert (seen["config"].do_sample, seen["config"].temperature, seen["config"].top_p) == (True, 0.7, 0.9)
    assert seen["config"].top_k == 0
    generate_answers(model, tokenizer, [[5]], max_new_tokens=4, temperature=0)
    assert not seen["config"].do_sample


def test_model_is_left_as_it_was(make_model, tokenizer):
    model = make_model().train()
    model.model.layers[0].eval()  # a frozen part stays in its own mode
    modes = [module.training for module in model.modules()]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    generate_answers(model, tokenizer, [[5, 6]], max_new_tokens=3)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert not any(tensor.is_inference() for tensor in [*model.parameters(), *model.buffers()])


def test_mode_is_put_back_when_generation_fails(make_model, tokenizer, monkeypatch):
    model = make_model().train()

    def fail(**_kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate_answers(model, tokenizer, [[5, 6]], max_new_tokens=3)
    assert model.training


def test_generation_settings_of_the_model_are_not_used(make_model, tokenizer):
    model = make_model()
    prompts = [tokenizer("저장")["input_ids"]] * 4
    expected = generate_answers(model, tokenizer, prompts, max_new_tokens=12, seed=3)
    assert len(set(map(tuple, expected[0]))) == 4  # samples of one prompt differ
    model.generation_config.top_k = 1
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_p = 0.5
    assert generate_answers(model, tokenizer, prompts, max_new_tokens=12, seed=3) == expected
    assert generate_answers(model, tokenizer, prompts, max_new_tokens=12, seed=4) != expected


def test_sampling_follows_the_probabilities(make_model, tokenizer):
    model = make_model()
    prompt = tokenizer("저장")["input_ids"]
    with torch.no_grad():
        probabilities = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    ends = {tokenizer.eos_token_id}
    answers, _ = generate_answers(model, tokenizer, [prompt] * 2_000, max_new_tokens=1, top_p=1.0)
    likeliest = int(probabilities.argmax())
    share = np.mean([ids == [likeliest] or (likeliest in ends and ids == []) for ids in answers])
    p = float(probabilities[likeliest])
    # 4 standard errors
    assert abs(share - p) < 4 * (p * (1 - p) / 2_000) ** 0.5


def test_answer_that_does_not_fit_the_model_is_refused(make_model, tokenizer, run):
    with pytest.raises(ValueError, match="A prompt of 6 tokens and an answer of 251 do not fit the 256 positions"):
        generate_answers(make_model(), tokenizer, [[5] * 6], max_new_tokens=251)
    with pytest.raises(ValueError, match="`max_new_tokens` to 240 or less"):
        run(max_new_tokens=256)
    with pytest.raises(ValueError, match="A prompt has no tokens"):
        generate_answers(make_model(), tokenizer, [[]])


def test_model_and_adapter_folders_answer_like_the_loaded_model(run, make_model, tokenizer, tmp_path):
    peft = pytest.importorskip("peft", reason="adapters need peft")
    model = make_model()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    evaluate(
        tmp_path / "base", ROWS, output_dir=tmp_path / "from_folder", max_new_tokens=8, device="cpu", progress=False
    )
    run(folder="loaded", batch_size=32)
    assert read_answers(tmp_path / "from_folder") == read_answers(tmp_path / "loaded")

    loaded = type(model).from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(loaded, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    run(folder="peft", model=adapted, batch_size=32)
    evaluate(
        tmp_path / "adapter",
        ROWS,
        output_dir=tmp_path / "from_adapter",
        max_new_tokens=8,
        device="cpu",
        progress=False,
    )
    assert read_answers(tmp_path / "from_adapter") == read_answers(tmp_path / "peft")
    assert read_answers(tmp_path / "peft") != read_answers(tmp_path / "loaded")
