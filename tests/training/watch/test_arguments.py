"""The door on the command line."""

import json

import pytest
from trl import TrlParser

from sae_posttrain.cli.train import check_command
from sae_posttrain.sft import script
from sae_posttrain.training.watch.record import WATCH_FILE, read


@pytest.fixture
def arguments(tmp_path, make_model, tokenizer):
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": "open it"}) + "\n")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"lang": "en", "prompt": "Open"}) + "\n")
    given = {
        "model_name_or_path": tmp_path / "model",
        "dataset_name": tmp_path / "data.jsonl",
        "output_dir": tmp_path / "run",
        "watch_prompts": tmp_path / "prompts.jsonl",
        "watch_every": 1,
        "watch_max_new_tokens": 4,
        "watch_target_lang": "any",
        "max_steps": 1,
        "penalty_weight": 0,
        "use_cpu": "true",
        "bf16": "false",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": "true",
    }
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sft_is_watched_from_its_settings(arguments, tmp_path):
    check_command("sft", arguments)
    trainer = script.make_trainer(*TrlParser(script.ARGUMENTS).parse_args_and_config(args=arguments))
    trainer.train()
    (watch,) = read(tmp_path / "run" / WATCH_FILE)
    assert watch["step"] == 1 and [answer["prompt"] for answer in watch["answers"]] == ["Open"]
    assert any("watch/endless" in entry for entry in trainer.state.log_history)


def test_wrong_watches_are_refused_before_torch_is_imported(arguments, tmp_path):
    place = arguments.index("--watch_prompts")
    without = arguments[:place] + arguments[place + 2 :]
    with pytest.raises(ValueError, match="`watch_every` needs `watch_prompts`"):
        check_command("sft", without)
    with pytest.raises(ValueError, match="There is no data file"):
        check_command("sft", [*without, "--watch_prompts", str(tmp_path / "none.jsonl")])
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Open"}) + "\n")
    with pytest.raises(ValueError, match="does not say the language"):
        check_command("sft", arguments)


def test_an_engine_is_refused_where_the_training_has_none(arguments):
    with pytest.raises(ValueError, match="`watch_engine` is `vllm`, and this training has no engine of vLLM"):
        check_command("sft", [*arguments, "--watch_engine", "vllm"])
    with pytest.raises(ValueError, match="`watch_engine` is one of transformers, vllm; got 'sglang'"):
        check_command("sft", [*arguments, "--watch_engine", "sglang"])
