"""The commands from end to end, on a tiny model in a folder laid out as on the Hub."""

import json

import pytest
import torch
import yaml

from sae_posttrain import FeatureSet
from sae_posttrain.cli import main

SENTENCES = {
    "zh": ["打开文件并保存", "按下这个键", "选择一种颜色", "关闭窗口", "插入新的一行", "删除整个页面"],
    "ko": ["파일을 열고 저장", "이 키를 누르세요", "색을 고르세요", "창을 닫습니다", "새 줄을 넣기", "쪽을 지우기"],
    "en": [
        "open the file and save",
        "press this key now",
        "choose a colour",
        "close the window",
        "insert",
        "delete it",
    ],
}


@pytest.fixture
def folder(tmp_path, make_model, tokenizer):
    """A model, its SAEs in Qwen-Scope's layout, texts, training data and prompts."""
    make_model().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    generator = torch.Generator().manual_seed(0)
    for block in (0, 1):
        weights = {
            "W_enc": torch.randn(64, 32, generator=generator),
            "W_dec": torch.randn(32, 64, generator=generator),
            "b_enc": torch.zeros(64),
            "b_dec": torch.zeros(32),
        }
        (tmp_path / "sae").mkdir(exist_ok=True)
        torch.save(weights, tmp_path / "sae" / f"layer{block}.sae.pt")
    rows = [(lang, text) for lang, texts in SENTENCES.items() for text in texts]
    write(tmp_path / "texts.jsonl", [{"lang": lang, "text": text * 3} for lang, text in rows])
    write(tmp_path / "prompts.jsonl", [{"id": i, "lang": lang, "prompt": t} for i, (lang, t) in enumerate(rows)])
    write(
        tmp_path / "train.jsonl",
        [
            {"lang": lang, "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]}
            for lang, text in rows
        ],
    )
    return tmp_path


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def find(folder, *extra):
    return main(
        [
            *("find-features", "--model", str(folder / "tiny"), "--sae", str(folder / "sae"), "--k", "8"),
            *("--texts", str(folder / "texts.jsonl"), "--blocks", "0", "1", "--target-group", "zh"),
            *("--out", str(folder / "zh.safetensors"), *extra),
        ]
    )


def test_find_train_evaluate_compare(folder, capsys):
    assert find(folder, "--check", "--num-features", "3") == 0
    printed = capsys.readouterr().out
    assert "6 features for zh, found on tiny (width 32)" in printed
    assert "only the target should suffer" in printed
    assert (folder / "zh.txt").read_text() in printed
    assert (folder / "zh.png").stat().st_size > 10_000
    features = FeatureSet.load(folder / "zh.safetensors")
    assert features.blocks == (0, 0, 0, 1, 1, 1)
    assert len(features.sources[0].sha256) == 64
    assert str(folder) not in str(vars(features))

    config = {
        "model_name_or_path": str(folder / "tiny"),
        "dataset_name": str(folder / "train.jsonl"),
        "features": str(folder / "zh.safetensors"),
        "output_dir": str(folder / "run"),
        "target_group": "zh",
        "assistant_only_loss": True,
        "penalty_weight": 2,
        "max_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    (folder / "sft.yaml").write_text(yaml.safe_dump(config))
    assert main(["sft", "--config", str(folder / "sft.yaml"), "--margin", "0.5"]) == 0
    assert "Model saved to" in capsys.readouterr().out
    assert (folder / "run" / "model.safetensors").exists()

    sampling = ["--prompts", str(folder / "prompts.jsonl"), "--max-new-tokens", "6", "--batch-size", "9"]
    assert main(["evaluate", "--model", str(folder / "tiny"), "--out", str(folder / "before"), *sampling]) == 0
    after = ["--model", str(folder / "run"), "--out", str(folder / "after"), "--compare", str(folder / "before")]
    assert main(["evaluate", *after, *sampling]) == 0
    table = capsys.readouterr().out
    assert "ko" in table
    assert json.loads((folder / "after" / "evaluation.json").read_text())["groups"]["ko"]["any"]["1"]["n"] == 6
    assert str(folder) not in (folder / "after" / "evaluation.json").read_text()


@pytest.fixture
def looping(folder, make_model, tokenizer):
    """The folder with a model that runs in circles when greedy."""
    model = make_model(seed=5)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight *= 0.02
        model.lm_head.weight[1] = 0
    model.save_pretrained(folder / "tiny")
    return folder


def find_repetition(folder, *extra):
    return main(
        [
            *("find-features", "--kind", "repetition", "--model", str(folder / "tiny"), "--sae", str(folder / "sae")),
            *("--k", "8", "--blocks", "0", "1", "--prompts", str(folder / "prompts.jsonl")),
            *("--out", str(folder / "loop.safetensors"), "--num-loops", "8", "--num-prompts", "2"),
            *("--max-new-tokens", "130", "--num-candidates", "2", *extra),
        ]
    )


def calibrate(folder, *extra):
    return main(
        [
            *("calibrate", "--model", str(folder / "tiny"), "--features", str(folder / "loop.safetensors")),
            *("--prompts", str(folder / "prompts.jsonl"), "--out", str(folder / "calibrated.safetensors")),
            *("--num-prompts", "6", "--max-new-tokens", "70", *extra),
        ]
    )


def test_find_repetition_and_calibrate(looping, capsys, tokenizer):
    assert find_repetition(looping) == 0
    printed = capsys.readouterr().out
    assert "4 features for loop, found on tiny (width 32)" in printed
    assert (looping / "loop.txt").read_text() in printed
    assert (looping / "loop.png").stat().st_size > 10_000
    features = FeatureSet.load(looping / "loop.safetensors")
    assert features.notes["num_loops"] == 8
    assert str(looping) not in str(vars(features))

    # greedy, any strong push makes this model say one thing for ever
    sampling = ("--temperature", "0", "--strengths", "0.001", "99", "--target", "0.7", "--control")
    name = features.names[-1]
    unsteered = calibrate(looping, *sampling, "--names", name, "--max-new-tokens", "64")
    printed = capsys.readouterr()
    assert unsteered == 0, printed.err
    assert "Strength 99 is the smallest measured at which 70 % are faulty." in printed.out
    found = FeatureSet.load(looping / "calibrated.safetensors")
    assert found.names == (name,)
    assert found.notes["calibration"]["strength"] == 99
    record = json.loads((looping / "calibrated.json").read_text())
    assert [row["strength"] for row in record["rows"]] == [0, 0.001, 99]
    assert set(record["controls"]) == {"random direction"}
    own, control = printed.out.split("Control, a random direction at the same strengths, for comparison only:")
    assert f"Pushing along {name}," in own and "Pushing along random0." in control
    assert (looping / "calibrated.png").stat().st_size > 10_000


def test_calibrate_takes_a_language_for_the_fault(looping, capsys):
    assert find_repetition(looping, "--rank-by", "increase", "--num-features", "1") == 0
    language = ["--fault", "language", "--target-lang", "zh", "--strengths", "1", "--max-new-tokens", "6"]
    assert calibrate(looping, *language, "--target", "1") == 2
    record = json.loads((looping / "calibrated.json").read_text())
    assert record["settings"]["fault"] == "switch into zh"
    assert (record["settings"]["prompt_form"], record["rows"][0]["num_answers"]) == ("text", 6)
    capsys.readouterr()
    assert calibrate(looping, "--target-lang", "zh", "--overwrite") == 2
    assert "--target-lang belongs to --fault language" in capsys.readouterr().err
    assert calibrate(looping, "--chat-template-kwargs", '{"enable_thinking": false}', "--overwrite") == 2
    assert "would have no effect: all prompts are texts" in capsys.readouterr().err


def test_unreached_target_exits_2_with_table_and_picture_but_no_features(looping, capsys):
    assert find_repetition(looping, "--rank-by", "increase", "--num-features", "1") == 0
    assert calibrate(looping, "--strengths", "0.01", "--temperature", "1.5") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sae-posttrain: No strength reaches 80 %; the best rate is 0.0 %, at 0.")
    assert (looping / "calibrated.txt").is_file()
    assert (looping / "calibrated.json").is_file()
    assert (looping / "calibrated.png").is_file()
    assert not (looping / "calibrated.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "repetition"], "--kind repetition needs --prompts, which the model answers until it loops, or"),
        (["--kind", "repetition", "--prompts", "p.jsonl", "--check"], "--check belongs to --kind language"),
        (
            ["--texts", "t.jsonl", "--target-group", "zh", "--num-loops", "9"],
            "--num-loops belongs to --kind repetition",
        ),
        (["--target-group", "zh"], "--kind language needs --texts"),
        (["--texts", "t.jsonl"], "--kind language needs --target-group"),
    ],
)
def test_options_of_the_other_kind_are_refused(arguments, message, capsys):
    given = ["find-features", "--model", "m", "--sae", "s", "--blocks", "0", "--out", "f.safetensors", *arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().err


def test_missing_yaml_data_is_an_error_that_names_it(folder, capsys):
    (folder / "sft.yaml").write_text(yaml.safe_dump({"dataset_name": "none.jsonl", "bf16": False, "use_cpu": True}))
    assert main(["sft", "--config", str(folder / "sft.yaml"), "--penalty_weight", "0"]) == 2
    assert capsys.readouterr().err == "sae-posttrain: There is no file none.jsonl (`dataset_name`).\n"
    (folder / "sft.yaml").write_text(
        yaml.safe_dump({"dataset_name": str(folder / "train.jsonl"), "model_name_or_path": str(folder / "tiny")})
    )
    plain = ["--use_cpu", "true", "--bf16", "false", "--penalty_weight", "0"]
    assert main(["sft", "--config", str(folder / "sft.yaml"), *plain, "--eval_strategy", "epoch"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "sae-posttrain: The dataset has no split 'test'; it has train. Set `dataset_test_split`."


def test_grpo_trains_from_a_yaml_file_and_fields_beside_it(folder, capsys):
    config = {
        "model_name_or_path": str(folder / "tiny"),
        "dataset_name": str(folder / "prompts.jsonl"),
        "output_dir": str(folder / "run"),
        "num_steered": 0,  # plain GRPO, which needs no features
        "reward_funcs": ["endless_repetition", "language_consistency"],
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "max_completion_length": 64,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    (folder / "grpo.yaml").write_text(yaml.safe_dump(config))
    assert main(["grpo", "--config", str(folder / "grpo.yaml"), "--max_steps", "1"]) == 0
    assert "Model saved to" in capsys.readouterr().out
    assert (folder / "run" / "model.safetensors").exists()
    assert main(["grpo", "--config", str(folder / "grpo.yaml"), "--dataset_name", "none.jsonl"]) == 2
    assert "There is no file none.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--target-group", "fr"], "No text belongs to the target group 'fr'; the groups are en, ko, zh"),
        (["--blocks", "7"], "holds no SAE of block 7"),
        (["--texts", "none.jsonl"], "There is no file none.jsonl"),
        (["--group-column", "language"], "has no group column `language`"),
        (["--out", "zh.bin"], "--out must end in .safetensors"),
    ],
)
def test_mistake_ends_in_one_line_and_writes_nothing(folder, capsys, extra, message):
    assert find(folder, *extra) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sae-posttrain: ")
    assert message in error
    assert not (folder / "zh.safetensors").exists()


def test_help_of_every_command(capsys):
    for command in ("inspect", "convert", "find-features", "calibrate", "evaluate"):
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
    assert "--top-p" in capsys.readouterr().out


def test_report_of_a_training_and_its_evaluations(folder, capsys, monkeypatch):
    sampling = ["--prompts", str(folder / "prompts.jsonl"), "--max-new-tokens", "6", "--batch-size", "9"]
    for name, seed in (("before", "0"), ("after", "1")):
        arguments = ["--model", str(folder / "tiny"), "--out", str(folder / "runs" / name), "--seed", seed, *sampling]
        assert main(["evaluate", *arguments]) == 0
    (folder / "runs" / "trained").mkdir()
    state = {"log_history": [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]}
    (folder / "runs" / "trained" / "trainer_state.json").write_text(json.dumps(state))
    capsys.readouterr()
    out = folder / "new" / "report.html"
    baseline = ["--baseline", str(folder / "runs" / "before")]
    assert main(["report", str(folder / "runs"), "--out", str(out), "--title", "Tiny & <small>", *baseline]) == 0
    assert capsys.readouterr().out == f"Written: {out}\n"
    html = out.read_text(encoding="utf-8")
    assert "<h1>Tiny &amp; &lt;small&gt;</h1>" in html
    assert "after minus before" in html
    assert "Training loss" in html

    monkeypatch.chdir(folder)
    assert main(["report", "runs/after"]) == 0
    assert (folder / "report.html").is_file()
    assert main(["report", str(folder / "sae")]) == 2
    assert "holds no run, nor does a folder in it" in capsys.readouterr().err


def inspect(folder, *extra):
    return main(["inspect", str(folder / "sae"), *extra])


def test_inspect_lists_a_place_and_describes_an_sae(folder, capsys):
    assert inspect(folder, "--out", str(folder / "list.json")) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].split() == ["qwen_scope", "0", "resid_post", "layer0.sae.pt"]
    assert [row["block"] for row in json.loads((folder / "list.json").read_text())] == [0, 1]

    assert inspect(folder, "--block", "1", "--k", "8", "--out", str(folder / "sae.json")) == 0
    printed = capsys.readouterr().out
    assert "resid_post of block 1 (the block's output)" in printed
    assert "topk: the 8 largest of each token, of any sign" in printed
    (described,) = json.loads((folder / "sae.json").read_text())["saes"]
    assert (described["num_features"], described["d_model"], described["file"]) == (64, 32, "layer1.sae.pt")

    (folder / "sae" / "layer0.sae.pt").unlink()  # a place that holds one SAE needs no block
    assert inspect(folder) == 0
    assert "resid_post of block 1" in capsys.readouterr().out


def test_inspect_measures_the_fit_on_a_model_and_its_base(folder, capsys, make_model):
    make_model(seed=7).save_pretrained(folder / "other")
    texts = ["--model", str(folder / "tiny"), "--texts", str(folder / "texts.jsonl"), "--max-texts", "5"]
    base = ["--base-model", str(folder / "tiny"), "--max-length", "20", "--out", str(folder / "fit.json")]
    assert inspect(folder, "--blocks", "0", "1", "--k", "8", *texts, *base) == 0
    printed = capsys.readouterr().out
    assert "FVU by group of texts" in printed
    assert "Block 0, resid_post: DOES NOT BELONG. It leaves" in printed
    record = json.loads((folder / "fit.json").read_text())
    assert [verdict["word"] for verdict in record["verdicts"]] == ["does not belong"] * 2
    assert [fit["model"] for fit in record["fits"]] == ["tiny", "tiny"]
    assert [fit["fvu"] for fit in record["fits"]] == [fit["fvu"] for fit in record["on_base_model"]]
    assert str(folder) not in (folder / "fit.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m"], "Give --model and --texts, or neither."),
        (["--max-texts", "3"], "--max-texts needs --model and --texts."),
        (["--model", "m", "--texts", "d"], "Name with --blocks the ones to measure:"),
        (["--blocks", "1", "1"], "--blocks names a block more than once"),
        (["--block", "7"], "holds no SAE of block 7"),
    ],
)
def test_inspect_says_what_is_missing(folder, capsys, arguments, message):
    assert inspect(folder, *arguments) == 2
    assert message in capsys.readouterr().err


def test_convert_writes_saelens_layout_once(folder, capsys):
    arguments = ["convert", str(folder / "sae"), "--out", str(folder / "lens"), "--block", "1", "--k", "8"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "Note: SAELens sets negative values among the k largest to 0" in printed
    assert f"Written: {folder / 'lens'} (SAELens, architecture topk)" in printed
    assert main(["inspect", str(folder / "lens")]) == 0
    assert "topk: the 8 largest of each token" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "exists and is no empty folder" in capsys.readouterr().err


def test_find_features_takes_a_site(folder, capsys):
    assert find(folder, "--site", "mlp_out") == 2
    assert "holds no SAE of mlp_out of block 0" in capsys.readouterr().err
    assert find(folder, "--site", "resid_post") == 0
