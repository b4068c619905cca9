import json
import logging
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerState
from trl import SFTConfig, SFTTrainer

from sae_posttrain import FeatureDriftCallback
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.penalty.drift import DRIFT_FILE, START_FILE
from sae_posttrain.penalty.probe_texts import ProbeSet, read_probe

WORDS = {"zh": "打开文件夹", "ko": "폴더를 열기", "en": "open the folder"}
TEXTS = [{"lang": lang, "text": f"{i} {word} {i * 7}"} for i in range(6) for lang, word in WORDS.items()]
PLACE = (0, "resid_post")


@pytest.fixture
def target_feature(make_model, make_features, tokenizer):
    """A feature of the first block that stands for Chinese in the tiny model: the difference of means."""
    features = make_features(blocks=(0,), per_block=1)
    options = TextOptions(max_texts=64, max_length=64, batch_size=8)
    probe = ProbeSet.from_rows(TEXTS, tokenizer, ("zh",), options)
    reading = read_probe(make_model(), probe, features, {})
    means = reading.mean_values[PLACE]
    row = means[reading.text_is_target].mean(dim=0) - means[~reading.text_is_target].mean(dim=0)
    return replace(features, encoder_rows=(row / row.norm())[None], encoder_bias=torch.zeros(1))


def blind(model, feature_set):
    """Take the feature's row out of everything that the model writes up to its block."""
    row = feature_set.encoder_rows[0]
    block = model.model.layers[0]
    with torch.no_grad():
        model.model.embed_tokens.weight -= torch.outer(model.model.embed_tokens.weight @ row, row)
        for matrix in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            matrix -= torch.outer(row, row @ matrix)


def train(folder, model, tokenizer, callbacks=(), resume=None, **settings):
    rows = [{"text": f"{word} {i}"} for i in range(8) for word in WORDS.values()]
    args = SFTConfig(
        str(folder),
        **{"max_steps": 5, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "max_length": 48}
        | {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no"}
        | {"report_to": "none", "logging_steps": 2, "disable_tqdm": True}
        | settings,
    )
    trainer = SFTTrainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=list(callbacks)
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def rows_of(folder):
    return [json.loads(line) for line in (folder / DRIFT_FILE).read_text(encoding="utf-8").splitlines()]


def start(callback, folder, model, tokenizer, step=0, is_main=True):
    """What a trainer does at its start."""
    state = TrainerState(global_step=step, is_world_process_zero=is_main)
    callback.on_train_begin(
        SimpleNamespace(output_dir=str(folder)), state, None, model=model, processing_class=tokenizer
    )
    return state


def test_a_model_that_hides_is_warned_of_once_with_figures(tmp_path, make_model, tokenizer, target_feature, caplog):
    model = make_model()
    callback = FeatureDriftCallback(target_feature, TEXTS, every=1)
    state = start(callback, tmp_path, model, tokenizer)
    blind(model, target_feature)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            state.global_step = step
            callback.on_step_end(None, state, None, model=model)
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"Step 1: the model seems to hide from feature {target_feature.names[0]}" in message
    assert "AUROC fell from 1.00 to 0." in message and "fitted anew has" in message and "penalty_target" in message
    assert [list(row["hiding"]) for row in rows_of(tmp_path)] == [list(target_feature.names)] * 2
    assert [row["drift/num_hiding"] for row in state.log_history] == [1.0, 1.0]


def test_training_with_the_callback_ends_in_the_same_weights(tmp_path, make_model, tokenizer, target_feature):
    def trained(name, *callbacks):
        model = make_model()
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3  # training draws random numbers
        return train(tmp_path / name, model, tokenizer, callbacks)

    plain = trained("plain")
    watched = trained("watched", FeatureDriftCallback(target_feature, TEXTS, every=2))
    pairs = zip(plain.model.state_dict().values(), watched.model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)

    def own_logs(trainer):
        changing = ("runtime", "per_second")
        return [
            {key: value for key, value in row.items() if not any(word in key for word in changing)}
            for row in trainer.state.log_history
            if "drift/num_hiding" not in row
        ]

    assert own_logs(watched) == own_logs(plain)


def test_figures_come_every_n_steps_and_at_the_end(tmp_path, make_model, tokenizer, target_feature, caplog):
    sae = SimpleNamespace(block=0, site="resid_post", reconstruct=lambda x: x * 0.9)
    callback = FeatureDriftCallback(target_feature, TEXTS, every=2, saes=[sae])
    with caplog.at_level(logging.WARNING, logger="sae_posttrain"):
        trainer = train(tmp_path, make_model(), tokenizer, [callback])
    assert not [record for record in caplog.records if "hide" in record.getMessage()]
    assert [row["step"] for row in rows_of(tmp_path)] == [2, 4, 5]
    logged = [row for row in trainer.state.log_history if "drift/num_hiding" in row]
    assert [row["step"] for row in logged] == [2, 4, 5]
    name = target_feature.names[0]
    assert {
        f"drift/correlation/{name}",
        f"drift/auroc/{name}",
        f"drift/fall/{name}",
        "drift/refitted_auroc",
        "drift/variance_explained/0",
        "drift/target_probability",
        "drift/target_probability_ratio",
    } < set(logged[-1])
    assert 0.9 < logged[-1][f"drift/correlation/{name}"] < 1.0
    assert callback.latest is not None and callback.latest.hiding == {}


def test_a_resumed_run_is_compared_with_the_start_of_the_first(tmp_path, make_model, tokenizer, target_feature):
    def callback():
        return FeatureDriftCallback(target_feature, TEXTS, every=2)

    saving = {"save_strategy": "steps", "save_steps": 3}
    train(tmp_path, make_model(), tokenizer, [callback()], **saving)
    whole = rows_of(tmp_path)
    assert [row["step"] for row in whole] == [2, 4, 5]
    with open(tmp_path / DRIFT_FILE, "a", encoding="utf-8") as file:
        file.write('{"step": 5, "feat')  # killed while it wrote
    train(tmp_path, make_model(seed=1), tokenizer, [callback()], resume=str(tmp_path / "checkpoint-3"), **saving)
    assert rows_of(tmp_path) == whole


def test_a_resumed_run_without_its_start_is_refused(tmp_path, make_model, tokenizer, target_feature):
    with pytest.raises(ValueError, match="how the features read before training"):
        start(FeatureDriftCallback(target_feature, TEXTS), tmp_path, make_model(), tokenizer, step=3)
    start(FeatureDriftCallback(target_feature, TEXTS), tmp_path, make_model(), tokenizer)
    with pytest.raises(ValueError, match="other probe texts or other features"):
        start(FeatureDriftCallback(target_feature, TEXTS[3:]), tmp_path, make_model(), tokenizer, step=3)
    sae = SimpleNamespace(block=0, site="resid_post", reconstruct=lambda x: x)
    with pytest.raises(ValueError, match="without the SAE of block 0"):
        start(FeatureDriftCallback(target_feature, TEXTS, saes=[sae]), tmp_path, make_model(), tokenizer, step=3)


def test_a_damaged_start_is_refused_in_words(tmp_path, make_model, tokenizer, target_feature):
    (tmp_path / START_FILE).write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="cannot be read"):
        start(FeatureDriftCallback(target_feature, TEXTS), tmp_path, make_model(), tokenizer, step=3)


def test_processes_other_than_the_main_one_read_and_write_nothing(tmp_path, make_model, tokenizer, target_feature):
    callback = FeatureDriftCallback(target_feature, TEXTS, every=1)
    state = start(callback, tmp_path / "run", make_model(), tokenizer, is_main=False)
    state.global_step = 1
    callback.on_step_end(None, state, None, model=None)
    callback.on_train_end(None, state, None, model=None)
    assert not (tmp_path / "run").exists() and state.log_history == []


def test_a_model_sharded_over_processes_is_refused(tmp_path, make_model, tokenizer, target_feature):
    model = make_model()
    model.lm_head.weight.ds_id = 0  # as DeepSpeed ZeRO-3 marks a parameter
    with pytest.raises(ValueError, match="sharded over processes"):
        start(FeatureDriftCallback(target_feature, TEXTS), tmp_path, model, tokenizer)


def test_settings_that_would_measure_nothing_are_refused(make_features):
    features = make_features(blocks=(0,), targets=())
    with pytest.raises(ValueError, match="does not say which group"):
        FeatureDriftCallback(features, TEXTS)
    with pytest.raises(ValueError, match="1 or more; got 0"):
        FeatureDriftCallback(features, TEXTS, target_group="zh", every=0)
    sae = SimpleNamespace(block=1, site="resid_post", reconstruct=lambda x: x)
    with pytest.raises(ValueError, match="An SAE reads block 1; the features are of block 0"):
        FeatureDriftCallback(features, TEXTS, target_group="zh", saes=[sae])


TRAIN = """
import json, os, sys, torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from sae_posttrain import FeatureDriftCallback, FeatureSet

folder, out, watched = sys.argv[1], sys.argv[2], sys.argv[3] == "watched"
torch.set_num_threads(1)
args = SFTConfig(
    out, per_device_train_batch_size=2, max_steps=3, learning_rate=1e-3, use_cpu=True, bf16=False, max_length=48,
    gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
)
texts = json.load(open(folder + "/texts.json"))
callbacks = [FeatureDriftCallback(FeatureSet.load(folder + "/features"), texts, every=2)] if watched else []
trainer = SFTTrainer(
    AutoModelForCausalLM.from_pretrained(folder + "/model"), args, train_dataset=load_from_disk(folder + "/data"),
    processing_class=AutoTokenizer.from_pretrained(folder + "/model"), callbacks=callbacks,
)
trainer.train()
trainer.save_model(out)
trainer.accelerator.end_training()
sys.stdout.flush()
os._exit(0)  # on a busy machine gloo's threads now and then abort an interpreter that is ending
"""


@pytest.mark.slow
def test_on_two_processes_the_main_one_reads_and_training_is_as_without(
    tmp_path, make_model, tokenizer, target_feature
):
    rows = [{"text": f"{word} {i}"} for i in range(8) for word in WORDS.values()]
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    target_feature.save(tmp_path / "features")
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    (tmp_path / "train.py").write_text(TRAIN)
    for kind in ("plain", "watched"):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [sys.executable, *launcher, str(tmp_path / "train.py"), str(tmp_path), str(tmp_path / kind), kind]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    assert [row["step"] for row in rows_of(tmp_path / "watched")] == [2, 3]
    plain, watched = (load_file(tmp_path / kind / "model.safetensors") for kind in ("plain", "watched"))
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
