"""On a model that a push along one direction makes emit one token for ever."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from sae_posttrain import FeatureSet, calibrate
from sae_posttrain.features.calibrate.picture import draw_calibration
from sae_posttrain.features.controls.random_directions import random_directions
from sae_posttrain.features.find.answers import Answer, Question, mean_answer_loss
from sae_posttrain.measure.answers.prompt_tokens import template_hash

calibrate_module = sys.modules[calibrate.__module__]
PROMPTS = [[10 + i, 11 + i, 12 + i] for i in range(12)]
GREEDY = {"temperature": 0.0, "max_new_tokens": 70}


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def features(model):
    """The row of the unembedding of token 50, written by the last block."""
    return FeatureSet.from_directions(
        model.lm_head.weight[50:51], blocks=[1], names=["emits one token"], residual_norms=[10.0]
    )


def test_smallest_strength_that_reaches_the_target_is_found(model, features, tokenizer):
    found = calibrate(model, features, PROMPTS, tokenizer=tokenizer, **GREEDY)
    rates = {row.strength: row.hit_rate for row in found.rows}
    assert list(rates) == sorted(rates)
    assert rates[0.0] == 0.0
    assert rates[found.strength] >= 0.8
    assert all(rate < 0.8 for strength, rate in rates.items() if strength < found.strength)
    # the step below was halved once, and the sweep ended one step behind the first that reached the target
    step_above = math.ceil(found.strength * 4) / 4
    assert step_above - 0.125 in rates
    assert max(rates) == step_above + 0.25
    notes = found.feature_set.notes["calibration"]
    assert notes["strength"] == found.strength
    assert notes["settings"]["temperature"] == 0.0


def test_strength_travels_with_the_feature_set(model, features, tokenizer, tmp_path):
    found = calibrate(model, features, PROMPTS, strengths=[3.0], tokenizer=tokenizer, **GREEDY)
    assert [row.strength for row in found.rows] == [0.0, 3.0]
    loaded = FeatureSet.load(found.feature_set.save(tmp_path / "calibrated.safetensors"))
    assert loaded.notes["calibration"]["strength"] == 3.0
    assert loaded.notes["calibration"]["rows"][1]["num_answers"] == len(PROMPTS)


def test_given_strengths_are_not_refined(model, features, tokenizer):
    found = calibrate(model, features, PROMPTS, strengths=[0, 0.25, 2, 3, 4], tokenizer=tokenizer, **GREEDY)
    assert found.strength == 2
    assert [row.strength for row in found.rows] == [0.0, 0.25, 2.0, 3.0]  # one behind, and no further


def test_unreachable_target_gives_no_strength_and_says_the_best_rate(model, features, tokenizer, caplog):
    found = calibrate(model, features, PROMPTS, strengths=[0.05, 0.1], tokenizer=tokenizer, **GREEDY)
    assert found.strength is None
    assert found.feature_set.notes["calibration"]["strength"] is None
    assert "No strength reaches 80 %. No answer was faulty at any strength." in str(found)
    assert "Pushing along emits one token, no strength up to 0.1 reaches 80 %" in caplog.text
    random = calibrate(model, random_directions(features, 0), PROMPTS, strengths=[2], tokenizer=tokenizer, **GREEDY)
    assert random.strength is None
    assert f"Pushing along {random.feature_set.names[0]}, no strength up to 2 reaches 80 %" in caplog.text


def lossy(monkeypatch, losses):
    """Makes the loss per token of a strength the one that is given, of all others 1.5."""
    measure = calibrate_module._measure

    def with_loss(*arguments):
        row = measure(*arguments)
        return replace(row, loss=next((loss for low, loss in losses.items() if row.strength >= low), 1.5))

    monkeypatch.setattr(calibrate_module, "_measure", with_loss)


def test_strength_whose_answers_are_unlike_the_models_own_is_remarked(model, features, tokenizer, monkeypatch):
    lossy(monkeypatch, {2.0: 8.72})
    found = calibrate(model, features, PROMPTS, strengths=[0.25, 2.0], tokenizer=tokenizer, **GREEDY)
    assert found.strength == 2
    assert "At strength 2 the answers have 8.72 nats a token under the model as it is, 1.50 without" in str(found)
    assert "reaches 80 % lies above 0.25 (0 %): try 0.6875, 1.125, 1.5625." in found.remark
    assert found.as_dict()["remark"] == found.remark
    lossy(monkeypatch, {2.0: 4.4})  # 2.9 nats more, one loss away from the threshold of 3
    near = calibrate(model, features, PROMPTS, strengths=[0.25, 2.0], tokenizer=tokenizer, **GREEDY)
    assert "nats" not in near.remark


def test_loops_of_a_single_token_are_told_from_loops_of_phrases(model, features, tokenizer, monkeypatch):
    # Strength 0.5 repeats a phrase of three tokens in half of the answers, strength 1 a single token in all.
    def answers(_model, _tokenizer, questions, sampling, *, strength, **_options):
        found = []
        for number, push in enumerate(strength[:, 0].tolist()):
            phrase = [5, 6, 7] if number % 2 == 0 and push == 0.5 else [9] if push == 1 else list(range(10, 10 + 70))
            found.append((phrase * 70)[:70])
        return [Answer(question, tuple(ids), False) for question, ids in zip(questions, found)]

    monkeypatch.setattr(calibrate_module, "answer_all", answers)
    prompts = [f"{word}." for word in ("Save", "Open", "Close", "Print")]
    options = {"strengths": [0.5, 1.0], "tokenizer": tokenizer, "max_new_tokens": 70}
    found = calibrate(model, features, prompts, **options)
    assert [row.period for row in found.rows] == [None, 3, 1]
    assert "period" in str(found) and found.as_dict()["rows"][1]["period"] == 3
    assert found.strength == 1
    assert "At strength 1 most loops repeat a single token." in found.remark
    assert "At 0.5, 50 % are faulty, and half of their loops have 3 tokens or more" in found.remark
    gentle = calibrate(model, features, prompts, target=0.5, **options)
    assert (gentle.strength, gentle.remark) == (0.5, "")
    alone = calibrate(model, features, prompts, **{**options, "strengths": [1.0]})
    assert "Try a lower temperature, at which less strength is needed" in alone.remark
    other = calibrate(model, features, prompts, fault=lambda ids, ended: not ended and ids[0] == 9, **options)
    assert "period" not in str(other) and other.remark == ""


def test_sweep_of_its_own_goes_on_to_the_smallest_strength_while_answers_are_unlikely(
    model, features, tokenizer, monkeypatch
):
    usual = calibrate(model, features, PROMPTS, tokenizer=tokenizer, **GREEDY)
    lossy(monkeypatch, {0.01: 9.0})
    finer = calibrate(model, features, PROMPTS, tokenizer=tokenizer, **GREEDY)
    missed = max(row.strength for row in finer.rows if row.strength < finer.strength)
    assert finer.strength - missed == 0.25 / 2**4
    assert missed < usual.strength and finer.strength <= usual.strength
    assert "It is the smallest that reaches the target; another feature" in finer.remark


ROWS = [
    {"lang": "ko", "prompt": "저장"},
    {"lang": "ru", "prompt": "Файл"},
    {"lang": "zh", "prompt": "保存"},
    {"lang": "ko", "prompt": "창"},
]


def test_language_is_a_fault_by_name(model, features, tokenizer, monkeypatch):
    # A push of more than 0.4 writes a Chinese character three times.
    character = tokenizer("文")["input_ids"]

    def answers(_model, _tokenizer, questions, sampling, *, strength, **_options):
        hits = [character * 3 if push > 0.4 else [] for push in strength[:, 0].tolist()]
        return [Answer(question, tuple(ids), True) for question, ids in zip(questions, hits)]

    monkeypatch.setattr(calibrate_module, "answer_all", answers)
    options = {"strengths": [0.25, 0.5], "tokenizer": tokenizer, "max_new_tokens": 12}
    found = calibrate(model, features, ROWS, fault="language", target_lang="zh", **options)
    assert found.strength == 0.5
    assert found.rows[0].num_answers == 3  # the Chinese prompt can show no switch into Chinese
    assert found.settings["fault"] == "switch into zh"
    assert calibrate(model, features, ROWS, fault="language", target_lang="ru", **options).strength is None


def test_how_prompts_were_put_is_recorded(model, features, tokenizer):
    options = {"strengths": [0.1], "tokenizer": tokenizer, **GREEDY}
    asked = [{"prompt": [{"role": "user", "content": "ab"}]}] * 2
    model.generation_config.suppress_tokens = [77]
    settings = calibrate(model, features, asked, chat_template_kwargs={"thinking": False}, **options).settings
    assert settings["prompt_form"] == "messages"
    assert settings["chat_template"] == template_hash(tokenizer)
    assert settings["chat_template_kwargs"] == {"thinking": False}
    assert settings["unused_generation_settings"] == {"suppress_tokens": [77]}
    assert calibrate(model, features, ["ab"], **options).settings["prompt_form"] == "text"
    assert calibrate(model, features, PROMPTS, **options).settings["prompt_form"] == "tokens"


def test_any_fault_can_be_calibrated(model, features, tokenizer):
    def says_token_50_at_once(token_ids, finished):
        assert isinstance(finished, bool)
        return token_ids[:1] == (50,)

    options = {"temperature": 0.0, "max_new_tokens": 2, "tokenizer": tokenizer}
    found = calibrate(model, features, PROMPTS, fault=says_token_50_at_once, **options)
    assert found.strength is not None
    assert found.settings["fault"] == "says_token_50_at_once"
    assert found.rows[-1].mean_length == 2


def test_loss_is_that_of_the_unsteered_model_on_the_answer_alone(model):
    answers = [Answer(Question((10, 11), ()), (50, 50, 50), False), Answer(Question((12,), ()), (30,), True)]
    with torch.inference_mode():
        first = model.eval()(torch.tensor([[10, 11, 50, 50, 50]])).logits[0].log_softmax(dim=-1)
        second = model(torch.tensor([[12, 30]])).logits[0].log_softmax(dim=-1)
    # tokens 2, 3, 4 of the first text, predicted at 1, 2, 3; token 1 of the second, predicted at 0
    expected = -(first[1, 50] + first[2, 50] + first[3, 50] + second[0, 30]) / 4
    assert mean_answer_loss(model, answers) == pytest.approx(float(expected), rel=1e-5)
    assert math.isnan(mean_answer_loss(model, [Answer(Question((10,), ()), (), True)]))


def test_steered_answers_are_unlikely_under_the_unsteered_model(model, features, tokenizer):
    found = calibrate(model, features, PROMPTS, strengths=[3.0], tokenizer=tokenizer, **GREEDY)
    plain, steered = found.rows
    assert steered.loss > plain.loss + 1
    assert plain.num_hits == 0
    assert plain.high == pytest.approx(0.2425, abs=1e-3)  # Wilson bound of 0 of 12


def test_prompts_are_drawn_by_the_seed_and_the_result_repeats(model, features, tokenizer):
    options = {"strengths": [1.0], "tokenizer": tokenizer, "max_new_tokens": 70, "temperature": 0.5, "num_prompts": 5}
    one, same, other = (
        calibrate(model, features, PROMPTS, seed=seed, **options).as_dict()["rows"] for seed in (0, 0, 1)
    )
    assert one == same
    assert one != other
    assert one[0]["num_answers"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 80}, "`target` is a share of the answers, above 0 and up to 1; got 80"),
        ({"strengths": [1.0, 0.5]}, "`strengths` must be numbers of 0 or more, rising"),
        ({"strengths": [-1.0, 0.5]}, "`strengths` must be numbers of 0 or more, rising"),
        ({"strengths": [0]}, "`strengths` holds only 0, at which nothing is pushed"),
        ({"num_prompts": 0}, "`num_prompts` must be 1 or more, got 0"),
        ({"max_new_tokens": 32}, "A loop is 64 tokens or longer, `max_new_tokens` is 32"),
        ({"max_new_tokens": 300}, "do not fit the 256 positions of the model"),
        ({"temperature": -1.0}, "`temperature` must be 0 or more"),
        ({"top_p": 0.0}, r"`top_p` in \(0, 1\], got 0.0, 0.0"),
        ({"fault": "loops"}, "Unknown fault 'loops'. Known: repetition, language, or a function of your own"),
        ({"fault": "language"}, "'language' needs the language that answers switch into: `target_lang`"),
        ({"target_lang": "zh"}, "`target_lang` belongs to the fault 'language', the fault asked for is 'repetition'"),
        ({"fault": "language", "target_lang": "zh"}, "The prompts are token ids, which .* have no language"),
        ({"chat_template_kwargs": {"a": 1}}, "The prompts are token ids, which go to the model as they are"),
        ({"fault": lambda ids, finished: True}, "Without steering 100 % of the answers are faulty already"),
    ],
)
def test_settings_that_cannot_work_are_refused(model, features, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        calibrate(model, features, PROMPTS, tokenizer=tokenizer, **{**GREEDY, **options})


def test_features_of_another_model_need_leave(make_model, make_features, tokenizer):
    model = make_model()
    model.config._name_or_path = "owner/tuned"
    features = make_features(base_model="owner/base")
    with pytest.raises(ValueError, match="allow_base_model='tuned'"):
        calibrate(model, features, PROMPTS, tokenizer=tokenizer, **GREEDY)
    options = {**GREEDY, "strengths": [0.1], "allow_base_model": "tuned"}
    assert calibrate(model, features, PROMPTS, tokenizer=tokenizer, **options).rows


def test_picture_and_record_of_a_calibration_with_controls(model, features, tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    options = {"strengths": [1.0, 3.0], "tokenizer": tokenizer, **GREEDY}
    found = calibrate(model, features, PROMPTS, **options)
    control = calibrate(model, random_directions(features, 0), PROMPTS, **options)
    path = draw_calibration(found, tmp_path / "new" / "calibration.png", others={"random direction": control})
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000
    assert draw_calibration(control, tmp_path / "calibration.svg").is_file()
    assert json.loads(json.dumps(found.as_dict()))["rows"][0]["strength"] == 0.0
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)  # importing it now fails
    with pytest.raises(ImportError, match=r"pip install 'sae_posttrain\[plots\]'"):
        draw_calibration(found, tmp_path / "calibration.png")
