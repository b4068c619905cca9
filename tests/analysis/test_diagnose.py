"""A planted feature is found, with where it starts; what words tell stands beside it; bad input is one message."""

import json
import random
import re

import pytest
import torch
from torch.nn.functional import normalize

from sae_posttrain import FeatureSet
from sae_posttrain.analysis import diagnose
from sae_posttrain.analysis.answers import read_answers
from sae_posttrain.saes.frozen import FrozenSAE

PLANTED = 17
GOOD, FAULT = "aeioun", "qxzjkv"


def rows(num=24, seed=0):
    """Answers in the letters of `GOOD`; the bad ones end in letters of `FAULT`, and say where these begin."""
    letters = random.Random(seed)
    bad, good = [], []
    for i in range(num):
        opening = "".join(letters.choices(GOOD, k=20 + i % 5))
        fault = "".join(letters.choices(FAULT, k=12))
        prompt = f"question {i} {letters.random()}"
        bad.append({"prompt": prompt, "completion": opening + fault, "spans": [[len(opening), len(opening) + 12]]})
        good.append({"prompt": prompt, "completion": "".join(letters.choices(GOOD, k=32))})
    return bad, good


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def planted(model, make_sae, tokenizer):
    """A ReLU SAE in which one feature reads the letters of the fault, and no other letter."""
    sae = make_sae(1, "relu")
    written = {True: [], False: []}
    for row in rows(seed=5)[0]:
        ids = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1]
        written[True].append(out[0, -12:])
        written[False].append(out[0, 1:-12])
    fault_ND, good_ND = (torch.cat(written[kind]) for kind in (True, False))
    within_DD = torch.cat([fault_ND - fault_ND.mean(dim=0), good_ND - good_ND.mean(dim=0)]).T.cov()
    direction = torch.linalg.solve(within_DD + 0.01 * torch.eye(32), fault_ND.mean(dim=0) - good_ND.mean(dim=0))
    direction = normalize(direction, dim=0)  # Fisher's discriminant
    W_enc, b_enc = sae.W_enc.clone(), sae.b_enc.clone()
    W_enc[:, PLANTED] = direction
    b_enc[PLANTED] = -(good_ND @ direction).quantile(0.995)
    return FrozenSAE(W_enc, b_enc, W_enc.T.contiguous(), sae.b_dec, "relu", 0, sae.source)


def test_planted_feature_comes_first_with_its_onset_at_the_fault(model, planted, tokenizer):
    found = diagnose(model, planted, *rows(), tokenizer=tokenizer, num_features=3, check=True)
    assert found.features.feature_ids[0] == PLANTED
    first = found.findings[0]
    assert first.auroc > 0.95 and first.q < 0.01
    assert first.mean_bad > 3 * first.mean_good
    assert abs(first.onset.distance) <= 3 and first.onset.inside > 0.5
    assert first.onset.before < 0.3 * first.onset.inside and first.onset.good < 0.3 * first.onset.inside
    assert first.removal.num_answers == 24 and abs(first.removal.fault) > 0
    assert found.counts["bad"] == found.counts["good"] == 24
    assert found.features.groups == ("bad", "good") and found.features.target_groups == ("bad",)
    assert found.features.mean[0, 0] > found.features.mean[0, 1]
    low, high = first.interval
    assert low <= first.difference <= high
    table = str(found)
    assert re.search(r"0\.17\s+100 %", table) and "Words alone:" in table


def test_words_that_tell_stand_beside_with_the_same_judges(model, planted, tokenizer):
    bad, good = rows()
    for row in bad:
        row["completion"] += " sorry"
    found = diagnose(model, planted, bad, good, tokenizer=tokenizer, num_features=1)
    words = {each.text: each for each in found.words}
    assert words["sorry"].auroc == 1.0 and words["sorry"].bad == 1.0 and words["sorry"].good == 0.0
    assert words["sorry"].log_odds > 0


def test_features_that_differ_by_chance_do_not_pass(model, make_sae, tokenizer, caplog):
    _, good = rows(40)
    found = diagnose(model, make_sae(1, "relu"), good[:20], good[20:], tokenizer=tokenizer, num_features=2)
    assert found.counts["passed"] == 0 and min(each.q for each in found.findings) > 0.05
    assert "No feature differs at a false discovery rate of 0.05" in caplog.text


def test_page_is_whole_without_network_and_escapes_everything(model, planted, tokenizer, tmp_path):
    bad, good = rows()
    for row in bad:
        row["completion"] += "<script>x</script>"
    page = diagnose(model, planted, bad, good, tokenizer=tokenizer, num_features=2).write_page(tmp_path / "a.html")
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html and "&lt;" in html
    assert not re.search(r"(src|href)=\"(?!#)", html) and "url(" not in html and "default-src 'none'" in html
    for needed in ("Bad answers", "Good answers", "Its direction promotes", "Where it starts", "the fault begins",
                   "Words alone", 'class="a5', "faulty", "underlined: the fault"):  # fmt: skip
        assert needed in html
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]


def judged(number, *, unexpected=False, endless=False, near=False):
    return {
        "id": number, "sample": 0, "lang": "ko", "prompt": f"p{number}", "answer": f"answer {number} 好",
        "unexpected": unexpected,
        "spans": [{"start": 9, "text": "好", "script": "Han", "excused": None}] if unexpected else [],
        "loop": {"endless": endless, "loop_any": endless, "near_loop": near, "onset": 2 if endless else None,
                 "period": 1, "span": 5 if endless else 0},
    }  # fmt: skip


def test_folder_of_an_evaluation_gives_both_kinds_and_their_spans(tmp_path):
    lines = [judged(0, unexpected=True), judged(1), judged(2, endless=True), judged(3, near=True)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "settings.json").write_text('{"prompt_form": "messages"}')
    both = read_answers(tmp_path, None)
    assert [(each.bad, each.text) for each in both] == [
        (True, "answer 0 好"), (True, "answer 2 好"), (False, "answer 1 好")]  # fmt: skip
    assert both[0].spans == ((9, 10),) and both[1].token_spans == ((2, 7),)
    assert both[0].row["prompt"] == [{"role": "user", "content": "p0"}]
    loops = read_answers(tmp_path, None, fault="loops")
    assert [each.bad for each in loops] == [True, False, False] and loops[0].text == "answer 2 好"
    with pytest.raises(ValueError, match="There are no bad answers .fault: switching., and 1 others"):
        read_answers([judged(1)], None, fault="switching")


def test_bad_input_is_told_in_one_message(model, planted, tokenizer):
    bad, good = rows(12)

    def refused(message, *given, **settings):
        with pytest.raises(ValueError, match=message):
            diagnose(model, planted, *given, tokenizer=tokenizer, **settings)

    refused("There are no good answers.*Give `good` too", bad)
    refused("There are 12 bad and 3 good answers; at least 8", bad, good[:3])
    refused("`pool` must be one of", bad, good, pool="last")
    refused("`fault` must be one of", bad, good, fault="rudeness")
    refused("no bad answer says where its fault is", good, good, check=True)
    refused("Row 1 of the texts: `spans` says where", [{**bad[0], "spans": "end"}], good)
    copies = [{"text": "aeiou"}] * 12
    refused("cannot be divided into two halves", copies, copies)


def test_set_that_is_written_is_read_back(model, planted, tokenizer, tmp_path):
    found = diagnose(model, planted, *rows(), tokenizer=tokenizer, num_features=2)
    again = FeatureSet.load(found.features.save(tmp_path / "f.safetensors"))
    assert again.notes["diagnosis"]["bad"] == 24
    assert set(again.scores) >= {"auroc", "q", "difference", "onset"}
