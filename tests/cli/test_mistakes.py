"""Mistakes on the command line end in one line, in the command's own options, before a model is loaded."""

import json
import subprocess
import sys

import pytest
import yaml

from sae_posttrain.cli import main, make_parser
from sae_posttrain.cli.errors import in_one_line, in_options, options_of
from sae_posttrain.model_source import require_model

USER, ASSISTANT = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}


@pytest.fixture
def folder(tmp_path, make_model, make_features, tokenizer):
    make_model().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    make_features(base_model="tiny").save(tmp_path / "zh.safetensors")
    rows = [{"messages": [USER, ASSISTANT | {"content": f"Yes {i}."}], "lang": "en"} for i in range(30)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "prompts.jsonl", [{"prompt": f"Hello {i}?", "lang": "en"} for i in range(30)])
    return tmp_path


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def refused(folder, capsys, monkeypatch):
    """Runs a command and returns its only line of errors; a model that is loaded is an error."""

    def load(*_args, **_kwargs):
        raise AssertionError("a model is loaded")

    def run(*arguments):
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", load)
        monkeypatch.setattr("transformers.modeling_utils.PreTrainedModel.from_pretrained", load)
        assert main([str(each) for each in arguments]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sae-posttrain:")]
        return line.removeprefix("sae-posttrain: ")

    return run


def recipe(folder, command, **changes):
    settings = {
        "model_name_or_path": str(folder / "tiny"),
        "dataset_name": str(folder / ("train.jsonl" if command == "sft" else "prompts.jsonl")),
        "features": str(folder / "zh.safetensors"),
        "output_dir": str(folder / "run"),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
    }
    if command == "sft":
        settings["assistant_only_loss"] = True
    else:
        settings |= {"steer_strength": 1.0, "num_generations": 2, "per_device_train_batch_size": 2}
    file = folder / f"{command}.yaml"
    file.write_text(yaml.safe_dump(settings | changes), encoding="utf-8")
    return file


@pytest.mark.parametrize("command", ["sft", "grpo"])
def test_mistakes_in_settings(refused, folder, command):
    def answer(*more, **changes):
        return refused(command, "--config", recipe(folder, command, **changes), *more)

    assert refused(command, "--config", "none.yaml") == "There is no file none.yaml (`--config`)."
    (folder / "broken.yaml").write_text("a: 1\nb: [\n")
    assert "broken.yaml, line 3: not YAML" in refused(command, "--config", folder / "broken.yaml")
    (folder / "list.yaml").write_text("- a\n")
    assert refused(command, "--config", folder / "list.yaml").endswith("write one `name: value` a line.")
    near = answer(learning_rat=1)
    assert "there is no field learning_rat; did you mean learning_rate" in near
    assert "there is no field --max_step; did you mean --max_steps" in answer("--max_step", "3")
    assert "There is no file train.csv (`dataset_name`)" in answer(dataset_name="train.csv")
    assert "Name the model: `model_name_or_path`" in answer(model_name_or_path=None)
    assert "There is no model folder no/such/model" in answer(model_name_or_path="no/such/model")
    assert "the Hub repository no/model is not on this machine" in answer(model_name_or_path="no/model")
    assert "There is no feature set none.safetensors (`features`)" in answer(features="none.safetensors")
    assert "argument --learning_rate" in answer("--learning_rate", "fast")


def test_every_row_of_the_training_data_is_checked(refused, folder):
    rows = [{"messages": [USER, ASSISTANT | {"content": f"Yes {i}."}], "lang": "en"} for i in range(30)]
    for wrong, said in (
        ({"messages": [USER, ASSISTANT], "lang": None}, "`lang` is null"),
        ({"messages": [USER, ASSISTANT | {"content": ""}], "lang": "en"}, "has an empty answer"),
        ({"messages": [USER, {"role": "narrator", "content": "a"}], "lang": "en"}, "has the role 'narrator'"),
        ({"messages": [USER, ASSISTANT], "lang": "fr"}, "The group 'fr' occurs in the data, but the feature set has"),
    ):
        write(folder / "train.jsonl", [*rows, wrong])
        error = refused("sft", "--config", recipe(folder, "sft"))
        assert error.startswith(f"Row 31 of {folder / 'train.jsonl'}") and said in error


def test_every_row_of_the_prompts_is_checked(refused, folder):
    rewards = ["endless_repetition", "language_consistency"]
    rows = [{"prompt": f"Hello {i}?", "lang": "en"} for i in range(30)]
    for wrong, said in (
        ({"prompt": "a", "lang": "tlh"}, "Unknown language 'tlh'"),
        ({"prompt": "a", "lang": None}, "`lang` is null"),
        ({"prompt": [USER, {"role": "gpt", "content": "b"}], "lang": "en"}, "the last message of `prompt`"),
    ):
        write(folder / "prompts.jsonl", [*rows, wrong])
        error = refused("grpo", "--config", recipe(folder, "grpo", reward_funcs=rewards))
        assert error.startswith(f"Row 31 of {folder / 'prompts.jsonl'}") and said in error


def test_messages_need_a_chat_template(refused, folder, tokenizer):
    (folder / "tiny" / "chat_template.jinja").unlink()
    assert "no chat template to render them. Name one with `chat_template_path`" in refused(
        "sft", "--config", recipe(folder, "sft")
    )
    write(folder / "prompts.jsonl", [{"prompt": [USER]}])
    assert "The rows hold messages (`prompt`)" in refused("grpo", "--config", recipe(folder, "grpo"))


def test_a_machine_without_a_gpu_is_told_what_to_add(refused, folder, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    error = refused("sft", "--config", recipe(folder, "sft", bf16=True, use_cpu=False))
    assert error.startswith("The settings ask for bf16 on a GPU, and this machine has none.")
    assert "add `--use_cpu true`" in error


@pytest.mark.parametrize("name", ["train.csv", "train.parquet", "train.json", "train.jsonl"])
def test_data_of_every_kind_of_file_is_trained_on(folder, capsys, name):
    from datasets import Dataset

    rows = [{"prompt": f"Hello {i}?", "completion": "Yes.", "lang": "en"} for i in range(4)]
    file = folder / name
    if name == "train.csv":
        file.write_text("prompt,completion,lang\n" + "".join(f"{r['prompt']},Yes.,en\n" for r in rows), "utf-8-sig")
    elif name == "train.parquet":
        Dataset.from_list(rows).to_parquet(file)
    elif name == "train.json":
        file.write_text(json.dumps(rows), encoding="utf-8-sig")
    else:
        turns = [[{"from": "human", "value": r["prompt"]}, {"from": "gpt", "value": "Yes."}] for r in rows]
        write(file, [{"conversations": each, "lang": "en"} for each in turns])
    only = {"assistant_only_loss": name == "train.jsonl", "max_steps": 1, "save_strategy": "no"}
    config = recipe(folder, "sft", dataset_name=str(file), disable_tqdm=True, **only)
    assert main(["sft", "--config", str(config)]) == 0, capsys.readouterr().err
    card = (folder / "run" / "README.md").read_text()
    assert "None" not in card.split("## Quick start")[0]
    assert "a fine-tuned version of `tiny`, a model in a local folder." in card


def test_other_commands_speak_of_their_options_and_name_the_row(refused, folder):
    tiny = folder / "tiny"
    find = ["find-features", "--model", tiny, "--sae", "s", "--blocks", "0", "--out", folder / "f.safetensors"]
    texts = ["--texts", folder / "train.jsonl", "--target-group", "zh"]
    assert "Name the right one with --group-column." in refused(*find, *texts, "--group-column", "language")
    write(folder / "x.jsonl", [{"text": "a", "lang": "zh"}, {"text": "b", "lang": None}])
    error = refused(*find, "--texts", folder / "x.jsonl", "--target-group", "zh")
    assert error == f"Row 2 of {folder / 'x.jsonl'}: `lang` is null. Give the group, or leave the row out."
    evaluate = ["evaluate", "--model", tiny, "--out", folder / "out", "--prompts"]
    assert "--max-new-tokens must be 1 or more, got 0." in refused(
        *evaluate, folder / "prompts.jsonl", "--max-new-tokens", "0"
    )
    assert "Name another column with --group-column." in refused(
        *evaluate, folder / "prompts.jsonl", "--group-column", "x"
    )
    write(folder / "empty.jsonl", [{"prompt": "a"}, {"prompt": ""}])
    calibrate = ["calibrate", "--model", tiny, "--features", folder / "zh.safetensors", "--out", "c.safetensors"]
    assert f"Row 2 of {folder / 'empty.jsonl'} has an empty prompt" in refused(
        *calibrate, "--prompts", folder / "empty.jsonl"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [
            "find-features",
            "--sae",
            "s",
            "--blocks",
            "0",
            "--out",
            "f.safetensors",
            "--texts",
            "t",
            "--target-group",
            "zh",
        ],
        ["find-directions", "--method=probe", "--blocks=0", "--out=f.safetensors", "--texts=t", "--target-group=zh"],
        ["calibrate", "--features", "f", "--prompts", "p", "--out", "c.safetensors"],
        ["evaluate", "--prompts", "d.jsonl", "--out", "o"],
        ["train-sae", "--texts", "t", "--blocks", "0", "--out", "o"],
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("name", ["no/model", "no/such/model"])
def test_a_model_that_is_not_there_is_said_at_once(refused, arguments, name):
    assert refused(*arguments, "--model", name).startswith(f"There is no model folder {name}")


def test_estimate_says_that_a_model_is_not_there(refused, folder):
    file = recipe(folder, "sft", model_name_or_path="no/model")
    assert refused("estimate", "--config", file).startswith("There is no model folder no/model")
    assert "did you mean max_length" in refused("estimate", "--config", recipe(folder, "sft", max_lenght=3))


def test_the_part_of_a_path_that_is_missing_is_named(folder, refused, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "models" / "x" / "sae").mkdir(parents=True)
    assert refused("inspect", "models/x/saes") == (
        "There is no folder models/x/saes: models/x has no saes in it; it has sae."
    )
    with pytest.raises(FileNotFoundError, match=r"no model folder models/y \(models is there, y is not in it\)"):
        require_model("models/y")
    with pytest.raises(FileNotFoundError, match="The folder models/x holds no model: it has no config.json"):
        require_model("models/x")


def test_arguments_in_messages_become_options():
    parser = make_parser()
    find, evaluate = options_of(parser, "find-features"), options_of(parser, "evaluate")
    assert in_options("Give it, e.g. `k=50`.", find) == "Give it, e.g. --k 50."
    assert in_options("Set `rank_by='increase'`, not `blocks=[1, 2]`.", find) == (
        "Set --rank-by increase, not --blocks 1 2."
    )
    assert in_options("Pick another `output_dir`, or `chat_template=False`.", evaluate) == (
        "Pick another --out, or --plain."
    )
    assert in_options("A column `prompt` or `messages`.", evaluate) == "A column `prompt` or `messages`."


def test_an_error_of_a_library_is_joined_to_one_line_and_ours_keeps_its_table():
    assert in_one_line(OSError("not\n  here")) == "not here"


def test_help_version_and_module_load_neither_torch_nor_trl():
    code = (
        "import sys; from sae_posttrain.cli import main; status = main(['sft', '--help']); "
        "assert status == 0 and not {'torch', 'trl', 'transformers'} & set(sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--penalty_weight" in printed and "--help-all" in printed
    version = [sys.executable, "-m", "sae_posttrain", "--version"]
    assert subprocess.run(version, capture_output=True, text=True, check=True).stdout.startswith("sae_posttrain ")


@pytest.mark.slow
@pytest.mark.parametrize(("command", "own"), [("sft", "--penalty_weight"), ("grpo", "--steer_strength")])
def test_help_all_lists_the_fields_of_trl_too(command, own):
    asked = [sys.executable, "-m", "sae_posttrain", command, "--help-all"]
    printed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert own in printed and "--per_device_train_batch_size" in printed and "--lr_scheduler_type" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "--sweep", "0", "1", "x"], "generate: error: argument --sweep: invalid float value: 'x'."),
        (["watch", "run", "--port", "x"], "watch: error: argument --port: invalid int value: 'x'."),
        (["watch"], "watch: error: the following arguments are required: RUN_DIR."),
        (["evaluate", "--no-such-thing"], "evaluate: error: "),
        (["nothing"], "error: argument command: invalid choice: 'nothing'"),
    ],
)
def test_words_that_cannot_be_parsed_are_one_line_too(capsys, words, said):
    with pytest.raises(SystemExit) as left:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and said in line and "--help` lists the options." in line


def test_an_option_is_not_named_twice():
    parser = make_parser()
    options = options_of(parser, "browse")
    message = in_options("Give it, e.g. `k=50` (on the command line `--k 50`).", options)
    assert message == "Give it, e.g. --k 50."
