"""
The whole path on tiny models that are built as SmolLM2 and Gemma 3 are, with the traits of real models.

Both: tied embeddings, bfloat16, more embeddings than the tokenizer has tokens, a first token that is an outlier. Gemma
too: embeddings scaled by the square root of the width, a sliding window shorter than the texts, no token for padding,
no chat template. SmolLM2 pads with its end token.
"""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from sae_posttrain import FeatureSet, SASFTConfig, SASFTTrainer, find_features, load_sae, measure_groups, steer
from sae_posttrain.cli import main
from sae_posttrain.features.read.loading import load_model_and_tokenizer
from sae_posttrain.hooks.record import record_sites
from sae_posttrain.hooks.truncated import read_sites

from .trained import ONE_STEP_OF_SGD, weights

WIDTH, BLOCKS, WINDOW = 32, 3, 8
BLOCK = 1
SMALL = {
    "vocab_size": 1024,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
}
RANKED = {"rank_by": "monolinguality", "num_features": 2}
TEXTS = [
    {"lang": lang, "text": text + f" {number} " + text}
    for number in range(4)
    for lang, text in (("en", "Press the key to open a file."), ("ko", "파일을 여세요"), ("zh", "请打开这个文件"))
]


@pytest.fixture(params=["smollm2", "gemma3"])
def folder(request, tokenizer, tmp_path) -> Path:
    """The folder of a saved model with its tokenizer."""
    tokenizer = copy.deepcopy(tokenizer)
    bos, eos = tokenizer.convert_tokens_to_ids(["<|user|>", "<|end|>"])
    torch.manual_seed(0)
    if request.param == "smollm2":
        tokenizer.pad_token = "<|end|>"
        model = LlamaForCausalLM(LlamaConfig(**SMALL, bos_token_id=bos, eos_token_id=eos, pad_token_id=eos))
    else:
        tokenizer.chat_template = None
        tokenizer.pad_token = None
        tokenizer.bos_token = "<|user|>"
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="<|user|> $A", pair="<|user|> $A $B", special_tokens=[("<|user|>", bos)]
        )
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(
                **SMALL,
                sliding_window=WINDOW,
                layer_types=kinds,
                query_pre_attn_scalar=16,
                bos_token_id=bos,
                eos_token_id=eos,
                pad_token_id=None,
            )
        )
    with torch.no_grad():
        model.get_input_embeddings().weight[bos] *= 30  # trained models write a huge residual at the first token
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sae(tmp_path) -> Path:
    """An SAE of sparsify's layout, whose features are the axes of the stream and their opposites."""
    eye = torch.eye(WIDTH)
    save_file(
        {
            "encoder.weight": torch.cat([eye, -eye]),
            "encoder.bias": torch.zeros(2 * WIDTH),
            "W_dec": torch.cat([eye, -eye]),
            "b_dec": torch.zeros(WIDTH),
        },
        _made(tmp_path / "sae" / f"layers.{BLOCK}") / "sae.safetensors",
    )
    config = {"d_in": WIDTH, "num_latents": 2 * WIDTH, "k": 8, "activation": "topk"}
    (tmp_path / "sae" / f"layers.{BLOCK}" / "cfg.json").write_text(json.dumps(config))
    return tmp_path / "sae"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def found(folder, sae) -> FeatureSet:
    return find_features(folder, load_sae(sae, block=BLOCK), TEXTS, target_group="zh", **RANKED)


def test_truncated_pass_has_the_bits_of_the_whole_pass(folder):
    model, _ = load_model_and_tokenizer(folder, None)
    assert model.dtype is torch.bfloat16
    ids = torch.randint(4, 200, (2, 4 * WINDOW))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    for place in [(0, "resid_pre"), (BLOCK, "resid_mid"), (BLOCK, "mlp_out"), (BLOCK, "attn_z"), (2, "resid_post")]:
        with torch.no_grad(), record_sites(model, [place]) as values:
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        assert read_sites(model, [place], input_ids=ids, attention_mask=mask)[place].equal(values[place][0])


def test_first_token_and_padding_do_not_reach_the_statistics(folder, sae):
    """The outlier is many times as large as the rest: a mean or a norm with it inside would show it."""
    model, tokenizer = load_model_and_tokenizer(folder, None)
    model = model.float()  # so that batches with and without padding differ by rounding only
    found = measure_groups(model, FeatureSet.from_sae(load_sae(sae, block=BLOCK), [1, 40]), TEXTS, held_out=0.0)
    read: dict[str, list[torch.Tensor]] = {"zh": [], "en": [], "ko": []}
    first = []
    for row in TEXTS:  # one text at a time: no padding at all
        ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
        (value,) = read_sites(model, [(BLOCK, "resid_post")], input_ids=ids, attention_mask=ids * 0 + 1).values()
        read[row["lang"]].append(value[0, 1:].float())
        first.append(value[0, 0].float().norm())
    norms = torch.cat([torch.cat(values) for values in read.values()]).norm(dim=1)
    if tokenizer.bos_token is not None:
        assert min(first) > 5 * norms.median()
    assert found.residual_norms[0] == pytest.approx(float(norms.median()), rel=1e-3)
    for group, values in read.items():
        pre = found.pre_activations(torch.cat(values))
        column = found.groups.index(group)
        torch.testing.assert_close(found.mean[:, column], pre.mean(dim=0), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.std[:, column], pre.std(dim=0, correction=0), rtol=1e-3, atol=1e-4)


def test_penalty_trains_without_a_template_and_without_a_pad_token(folder, found, tmp_path):
    data = Dataset.from_list([{"lang": row["lang"], "prompt": "Open: ", "completion": row["text"]} for row in TEXTS])
    settings = {**ONE_STEP_OF_SGD, "per_device_train_batch_size": 6, "learning_rate": 0.1, "penalty_weight": 3.0}
    after = []
    for weight in (0.0, 3.0):
        model, tokenizer = load_model_and_tokenizer(folder, None)
        args = SASFTConfig(str(tmp_path / f"run{weight}"), **{**settings, "penalty_weight": weight})
        trainer = SASFTTrainer(model, args, train_dataset=data, processing_class=tokenizer, feature_set=found)
        trainer.train()
        logged = {key: value for row in trainer.state.log_history for key, value in row.items()}
        assert math.isfinite(logged["train_loss"]) and logged["sae/penalty"] > 0
        after.append(weights(trainer.model))
    assert all(torch.isfinite(each).all() for each in after)
    assert not after[0].equal(after[1])


def test_push_reaches_every_generated_token_beyond_the_window(folder, found):
    model, _ = load_model_and_tokenizer(folder, None)
    ids = torch.randint(4, 200, (2, 2 * WINDOW))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    place = (BLOCK, "resid_post")
    settings = {"max_new_tokens": 2 * WINDOW, "min_new_tokens": 2 * WINDOW, "do_sample": False, "pad_token_id": 0}

    def generate(strength):
        with steer(model, found[0], strength=strength, allow_base_model=model.config._name_or_path):
            with record_sites(model, [place]) as values:
                out = model.generate(input_ids=ids, attention_mask=mask, **settings)
        return out, values[place]

    plain, unpushed = generate(0.0)
    _, pushed = generate(4.0)
    assert plain.shape[1] == 4 * WINDOW
    direction = found.directions[0] / found.directions[0].norm()
    length = 4.0 * float(found.residual_norms[0])
    rise = (pushed[0][:, -1].float() - unpushed[0][:, -1].float()) @ direction
    torch.testing.assert_close(rise, torch.full((2,), length), rtol=0.05, atol=0.05)
    # Later tokens differ, so that only their height along the direction can be compared with the push.
    heights = torch.stack([value[:, -1].float() @ direction for value in pushed[1:]])
    assert len(heights) == 2 * WINDOW - 1 and heights.min() > 0.5 * length


def test_answers_are_measured_without_a_template_and_without_a_pad_token(folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "Open a file", "lang": "en"}, {"prompt": "파일을 여는 방법은 무엇입니까", "lang": "ko"}]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "answers"
    code = main(
        [
            *("evaluate", "--model", str(folder), "--prompts", str(prompts), "--out", str(out)),
            *("--target-lang", "zh", "--max-new-tokens", "24"),
        ]
    )
    assert code == 0, capsys.readouterr().err
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 2
