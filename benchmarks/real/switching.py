"""
Train one arm of `switching.yaml` and measure it on rows that no arm was trained on.

    python benchmarks/real/switching.py plain --model M --saes S --data switching --work runs/switching

Measured, by the language of the answer: the loss; the probability of tokens of each other script where the answer has
none, read off held-out answers; where features are used, how much of that lies where one of them reads high; and with
`--sample` the probability that a sampled answer holds the target's script (`../evidence/switch_probability.py`).
Of the target's language, also the loss of a review that was asked for in English, and of a sentence that was to be
repeated.

Writes `<work>/<split>-<arm>-<seed>.json`; a run that stands there is not repeated.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "evidence")]

import torch  # noqa: E402
import yaml  # noqa: E402
from datasets import Dataset  # noqa: E402
from machine import hardware, versions  # noqa: E402
from peft import LoraConfig  # noqa: E402
from settings import merged  # noqa: E402
from switch_probability import switch_probability  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from sae_posttrain import (  # noqa: E402
    FeatureSet,
    LanguageConsistencyReward,
    SASFTConfig,
    SASFTTrainer,
    SteeredGRPOConfig,
    SteeredGRPOTrainer,
    calibrate,
    find_features,
)
from sae_posttrain.cpu_logits import contiguous_states  # noqa: E402
from sae_posttrain.features.controls.matched_random import matched_random_features  # noqa: E402
from sae_posttrain.features.find.by_direction import find_directions  # noqa: E402
from sae_posttrain.features.read.text_options import TextOptions  # noqa: E402
from sae_posttrain.features.read.texts import TextBatch, batches, tokenize  # noqa: E402
from sae_posttrain.hooks.record import record_sites  # noqa: E402
from sae_posttrain.measure.faults.script_tokens import script_tokens  # noqa: E402

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}User: {{ message.content }}\n"
    "{% else %}Assistant: {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
SCRIPTS = {"Han": "zh", "kana": "ja", "Hangul": "ko", "Cyrillic": "ru"}
OWN = {"zh": ("Han",), "ja": ("Han", "kana"), "ko": ("Hangul",), "ru": ("Cyrillic",)}
NUM_SAMPLED = 20  # prompts of each language that are answered
REQUEST = {"zh": "Write a review of a hotel in Chinese."}
QUOTATION = "Repeat this sentence: {}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--saes", type=Path, required=True, help="folder of blocks.<block>.hook_resid_post")
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 12])
    parser.add_argument("--data", type=Path, required=True, help="what switching_data.py wrote")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--split", choices=["dev", "test"], default="test", help="rows that are measured")
    parser.add_argument("--sample", action="store_true", help="answer prompts too, which takes the longest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 leaves its default")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    definitions = yaml.safe_load((HERE / "switching.yaml").read_text(encoding="utf-8"))
    settings = merged(definitions["common"], definitions["arms"][arguments.arm] or {})
    settings["target"] = definitions["target"]
    finished = arguments.work / f"{arguments.split}-{arguments.arm}-{arguments.seed}.json"
    if finished.exists():
        if json.loads(finished.read_text(encoding="utf-8"))["settings"] != settings:
            raise ValueError(f"{finished} was made with other settings. Remove it to run the arm again.")
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    tokenizer.chat_template = TEMPLATE
    started = time.perf_counter()
    features = features_for(arguments, settings, tokenizer) if "features" in settings else None
    found = time.perf_counter()
    model, log = train(arguments, settings, tokenizer, features)
    rewarded = {}
    if "grpo" in settings:
        model, rewarded = reward_language(arguments, model, settings, tokenizer, features)
    trained = time.perf_counter()
    rows = read_rows(arguments.data / f"{arguments.split}.jsonl")
    result = measure(model, tokenizer, rows, settings, features)
    result["wanted"] = wanted(model, tokenizer, rows, settings)
    if arguments.sample:
        result["sampled"] = sampled(model, tokenizer, rows, settings)
    result |= {
        "arm": arguments.arm,
        "seed": arguments.seed,
        "settings": settings,
        "log": log,
        **rewarded,
        "seconds": {
            "features": round(found - started, 1),
            "training": round(trained - found, 1),
            "measuring": round(time.perf_counter() - trained, 1),
        },
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "trl", "peft", "sae_posttrain"),
    }
    finished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def features_for(arguments: argparse.Namespace, settings: dict[str, Any], tokenizer: Any) -> FeatureSet:
    """The features of an arm, found once for all arms that use the same."""
    wanted, target = dict(settings["features"]), settings["target"]
    method = wanted.pop("method")
    name = "_".join([method, target, *(f"{key}{value}" for key, value in wanted.items())])
    if method == "matched_random":
        name += f"_seed{arguments.seed}"
    file = arguments.work / "features" / f"{name}.safetensors"
    if file.exists():
        return FeatureSet.load(file)
    model, texts = str(arguments.model), arguments.data / "texts.jsonl"
    options = TextOptions(max_length=160)
    saes = [str(arguments.saes / f"blocks.{block}.hook_resid_post") for block in arguments.blocks]
    common: dict[str, Any] = {"tokenizer": tokenizer, "text_options": options}
    if method in ("sae", "matched_random"):
        feature_set = find_features(
            model, saes, texts, target_group=target, blocks=arguments.blocks, **common, **wanted
        )
        if method == "matched_random":
            feature_set = matched_random_features(model, feature_set, saes, texts, seed=arguments.seed, **common)
    else:
        feature_set = find_directions(
            model, texts, method=method, target_group=target, blocks=arguments.blocks, **common, **wanted
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    feature_set.save(file)
    return feature_set


def train(
    arguments: argparse.Namespace, settings: dict[str, Any], tokenizer: Any, features: FeatureSet | None
) -> tuple[Any, list[dict[str, Any]]]:
    training = dict(settings["training"])
    if "penalised_tokens" in training:
        training["penalised_tokens"] = settings["target"]
    folder = arguments.work / f"{arguments.arm}-{arguments.seed}"
    args = SASFTConfig(
        str(folder),
        seed=arguments.seed,
        logging_steps=4,
        **common_settings(),
        **training,
    )
    rows = [
        {key: row[key] for key in ("lang", "prompt", "completion")}
        for row in read_rows(arguments.data / "train.jsonl")
    ]
    trainer = SASFTTrainer(
        AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16),
        args,
        feature_set=features,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **settings["lora"]),
    )
    trainer.train()
    kept = ("step", "loss", "sae/penalty", "sae/excess_rate", "tokens/mass")
    log = [{k: v for k, v in entry.items() if k in kept} for entry in trainer.state.log_history if "loss" in entry]
    return trainer.model.merge_and_unload().eval(), log


def common_settings() -> dict[str, Any]:
    return {
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def reward_language(
    arguments: argparse.Namespace, model: Any, settings: dict[str, Any], tokenizer: Any, features: FeatureSet | None
) -> tuple[Any, dict[str, Any]]:
    """
    GRPO on the model of plain SFT: 1 for an answer in the language of its prompt, without the target's script. With
    features, some rollouts are pushed along them, as far as `calibrate` says.
    """
    target = settings["target"]
    tokens = set(script_tokens(tokenizer, target).ids)
    own = OWN[target][0]
    rows = [
        {"prompt": row["prompt"], "lang": row["lang"]}
        for row in read_rows(arguments.data / "train.jsonl")
        if own not in OWN.get(row["lang"], ())
    ]
    grpo = dict(settings["grpo"])
    result: dict[str, Any] = {}
    if settings["grpo"]["num_steered"]:
        assert features is not None
        pushed = features.select(block=settings["pushed_block"])[[0]]
        calibration = calibrate(
            model,
            pushed,
            read_rows(arguments.data / "dev.jsonl"),
            strengths=settings["strengths"],
            target=0.3,
            fault="language",
            target_lang=target,
            max_new_tokens=grpo["max_completion_length"],
            num_prompts=24,
            tokenizer=tokenizer,
        )
        print(calibration, flush=True)
        features = calibration.feature_set
        grpo["steer_strength"] = calibration.strength or calibration.best.strength
        result["calibration"] = calibration.as_dict()
    config = SteeredGRPOConfig(
        str(arguments.work / f"{arguments.arm}-{arguments.seed}"),
        seed=arguments.seed,
        logging_steps=1,
        lr_scheduler_type="constant_with_warmup",
        **common_settings(),
        **grpo,
    )
    trainer = SteeredGRPOTrainer(
        model,
        LanguageConsistencyReward(target_lang=target),
        config,
        feature_set=features,
        fault=lambda ids, _: not tokens.isdisjoint(ids),
        train_dataset=Dataset.from_list(rows).shuffle(seed=arguments.seed),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **settings["lora"]),
    )
    with contiguous_states(trainer.model):  # TRL's own rollouts on CPU, too
        trainer.train()
    kept = ("step", "reward", "completions/mean_length", "frac_reward_zero_std")
    result["grpo"] = [
        {key: value for key, value in entry.items() if key in kept or key.startswith("steer/")}
        for entry in trainer.state.log_history
        if "reward" in entry
    ]
    return trainer.model.merge_and_unload().eval(), result


def measure(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], settings: dict[str, Any], features: FeatureSet | None
) -> dict[str, Any]:
    vocab = model.get_output_embeddings().weight.shape[0]
    is_script = {}
    for script, lang in SCRIPTS.items():
        is_script[script] = torch.zeros(vocab, dtype=torch.bool)
        is_script[script][list(script_tokens(tokenizer, lang).ids)] = True
    target_script = OWN[settings["target"]][0]
    langs = sorted({row["lang"] for row in rows})
    by_lang: dict[str, dict[str, Any]] = {}
    reach: dict[str, list[float]] = {"all": [0.0, 0.0], "2 std": [0.0, 0.0], "3 std": [0.0, 0.0]}
    texts = tokenize(
        [{"lang": row["lang"], "messages": [*row["prompt"], *row["completion"]]} for row in rows],
        tokenizer,
        TextOptions(max_length=settings["training"]["max_length"]),
    )
    for lang in tqdm(langs, desc="held-out answers", unit="language"):
        loss, count = 0.0, 0
        mass = {script: 0.0 for script in SCRIPTS if script not in OWN.get(lang, ())}
        where = dict.fromkeys(mass, 0)
        own = [text for text in texts if text.group == lang]
        for batch in batches(own, [lang], 4):
            logits_NV, targets_N, highest_N = predictions(model, batch, features, lang, settings["target"])
            log_probs = logits_NV.float().log_softmax(dim=-1)
            loss -= float(log_probs.gather(-1, targets_N[:, None]).sum())
            count += len(targets_N)
            probs = log_probs.exp_()
            for script in mass:
                elsewhere_N = ~is_script[script][targets_N]
                mass_N = probs[:, is_script[script]].sum(dim=-1)
                mass[script] += float(mass_N[elsewhere_N].sum())
                where[script] += int(elsewhere_N.sum())
                if script == target_script and highest_N is not None:
                    for name, kind in (("all", -torch.inf), ("2 std", 2.0), ("3 std", 3.0)):
                        high_N = elsewhere_N & (highest_N > kind)
                        reach[name][0] += int(high_N.sum())
                        reach[name][1] += float(mass_N[high_N].sum())
        by_lang[lang] = {
            "loss": loss / count,
            "num_tokens": count,
            "mass": {script: mass[script] / where[script] for script in mass},
        }
    result: dict[str, Any] = {"languages": by_lang}
    if features is not None:
        result["reach"] = reach
    return result


def wanted(model: Any, tokenizer: Any, rows: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, float]:
    """Loss of the target's language where an English prompt asks for it, in nats a token."""
    target = settings["target"]
    own = [row for row in rows if row["lang"] == target]
    reviews = [row["completion"][0]["content"] for row in own if row["kind"] == "review"]
    sentences = [row["completion"][0]["content"].split("\n")[0] for row in own if row["kind"] == "help"]
    asked = {
        "request": [(REQUEST[target], review) for review in reviews],
        "quotation": [(QUOTATION.format(sentence), sentence) for sentence in sentences],
    }
    result = {}
    for kind, pairs in asked.items():
        chats = [
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            for question, answer in pairs
        ]
        texts = tokenize(
            [{"lang": "en", "messages": messages} for messages in chats],
            tokenizer,
            TextOptions(max_length=settings["training"]["max_length"]),
        )
        loss, count = 0.0, 0
        for batch in batches(texts, ["en"], 4):
            logits_NV, targets_N, _ = predictions(model, batch, None, "en", target)
            loss += float(torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, reduction="sum"))
            count += len(targets_N)
        result[kind] = loss / count
    return result


@torch.inference_mode()
def predictions(
    model: Any, batch: TextBatch, features: FeatureSet | None, lang: str, target: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """
    At the positions that predict a token of an answer: logits `(N, V)`, the tokens `(N,)`, and the highest reading of
    a feature, in its standard deviations on the language, `(N,)`.
    """
    counted_BT = batch.counted[:, 1:]
    tokens_N = batch.input_ids[:, 1:][counted_BT]
    places = list(features.places) if features is not None and lang != target else []
    if not places:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        return logits[:, :-1][counted_BT], tokens_N, None
    assert features is not None
    with record_sites(model, places) as values:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    group = features.groups.index(lang)
    readings = []
    for block, site in places:
        own = features.select(block=block, site=site)
        pre_BTF = own.pre_activations(values[block, site][0][:, :-1].float())
        readings.append((pre_BTF - own.mean[:, group]) / own.std[:, group])
    return logits[:, :-1][counted_BT], tokens_N, torch.cat(readings, dim=-1).amax(dim=-1)[counted_BT]


def sampled(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], settings: dict[str, Any]
) -> dict[str, list[float]]:
    """Probability of each answer to hold a token of the target's script, for languages that are not written in it."""
    script = OWN[settings["target"]][0]
    tokens = script_tokens(tokenizer, settings["target"]).ids
    result: dict[str, list[float]] = {}
    for lang in tqdm(sorted({row["lang"] for row in rows}), desc="sampled answers", unit="language"):
        if script in OWN.get(lang, ()):
            continue
        prompts = [row for row in rows if row["lang"] == lang and row["kind"] == "help"]
        prompts = (prompts or [row for row in rows if row["lang"] == lang])[:NUM_SAMPLED]
        ids = [
            tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
            for row in prompts
        ]
        measured = switch_probability(model, tokenizer, ids, tokens, seed=0, **settings["sampling"])
        result[lang] = [round(one.probability, 5) for one in measured]
    return result


if __name__ == "__main__":
    main()
