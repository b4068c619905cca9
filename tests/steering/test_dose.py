"""A dose curve: rates and loss over the strength, as table, picture and page."""

import json

import pytest
import torch

from sae_posttrain import steer
from sae_posttrain.steering.dose import dose_curve, steps_between
from sae_posttrain.steering.page import write_dose_curve
from sae_posttrain.steering.picture import draw_dose_curve

TEXTS = ["open the file and save it", "press this key now"]


def test_faults_and_loss_rise_with_the_strength(model, tokenizer, features, questions, sampling, tmp_path):
    curve = dose_curve(
        model, tokenizer, features, [20.0, 0.0, -2.0], questions, sampling, weights={"loop": 1.0}, texts=TEXTS
    )
    assert [row.strength for row in curve.rows] == [-2.0, 0.0, 20.0]
    assert [row.rates["endless"]["count"] for row in curve.rows] == [0, 0, 2]
    assert curve.rows[2].loss > curve.rows[1].loss
    table = str(curve)
    assert "2 answers at each strength, times loop=1 (median residual norms)" in table
    assert "100.0 [34.2, 100.0]" in table and "on 2 held-out texts" in table
    assert json.loads(json.dumps(curve.as_dict()))["rows"][2]["endless"]["rate"] == 1.0
    assert draw_dose_curve(curve, tmp_path / "dose.png").stat().st_size > 10_000
    page = write_dose_curve(curve, tmp_path / "dose.html", title="Dose <b>").read_text(encoding="utf-8")
    assert page.count("<svg") == 4 and "Dose &lt;b&gt;" in page and "<script" not in page
    with pytest.raises(ValueError, match="A picture ends in .*.png, .*; got .*dose.txt"):
        draw_dose_curve(curve, tmp_path / "dose.txt")


def test_the_loss_is_that_of_the_steered_model_on_the_text(model, tokenizer, features, questions, sampling):
    curve = dose_curve(model, tokenizer, features, [0.5], questions[:1], sampling, texts=TEXTS[:1])
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad(), steer(model, features, 0.5, positions="all"):
        expected = model(ids, labels=ids).loss.item()
    assert curve.rows[0].loss == pytest.approx(expected, rel=1e-5)


def test_without_texts_the_loss_is_measured_on_the_plain_answers(model, tokenizer, features, questions, sampling):
    curve = dose_curve(model, tokenizer, features, [0.0, 5.0], questions, sampling)
    assert curve.loss_of == "the plain answers"
    assert curve.rows[1].loss > curve.rows[0].loss


def test_steps_are_evenly_spaced_and_checked():
    assert steps_between(-2, 2, 9) == [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]
    for low, high, num in ((1, 1, 3), (0, 1, 1), (0, 1, 2.5), (0, float("nan"), 3)):
        with pytest.raises(ValueError, match="`sweep` takes the lowest strength, the highest, and how many"):
            steps_between(low, high, num)


def test_texts_without_a_token_to_predict_are_refused(model, tokenizer, features, questions, sampling):
    with pytest.raises(ValueError, match="No held-out text has two tokens"):
        dose_curve(model, tokenizer, features, [1.0], questions, sampling, texts=["x"])
