"""On a model that nearly forgets what came before: greedy, it soon runs in circles. Its SAE has a planted feature."""

import gzip
import json
import logging
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from sae_posttrain import FrozenSAE, find_repetition_features
from sae_posttrain.features.find import by_repetition as repetition
from sae_posttrain.features.find.answers import Question, Sampling, read_questions
from sae_posttrain.features.find.by_repetition import GROUPS
from sae_posttrain.features.find.loop_scores import repeated_tokens
from sae_posttrain.features.find.loop_texts import benign_texts, collect_samples
from sae_posttrain.hooks.record import record_blocks
from sae_posttrain.measure.faults.loops import find_loop
from sae_posttrain.saes.stored.source import SAESource

from ...measure.answers import fake_vllm

PROMPTS = [[10 + i, 60 + i, 12 + 3 * i] for i in range(24)]
QUICK = {"num_loops": 10, "num_prompts": 6, "max_new_tokens": 130, "normal_temperature": 0.4}


@pytest.fixture
def model(make_model):
    model = make_model(seed=5)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight *= 0.02  # the next token hardly depends on the ones before
        model.lm_head.weight[1] = 0  # and is hardly ever the end token
    return model.eval()


@pytest.fixture
def samples(model, tokenizer):
    return collect(model, tokenizer)


def collect(model, tokenizer, **options):
    options = {"num_loops": 10, "sampling": Sampling(130, 0.0), "normal_temperature": 0.4} | options
    return collect_samples(model, tokenizer, **{"questions": read_questions(PROMPTS, tokenizer), **options})


@pytest.fixture
def sae(model, samples):
    """Block 1. Feature 0 rises most in loops, 1 rises less and writes token 50, 2 falls, the others say nothing."""
    rises = []
    for loop in samples.loops:
        with torch.inference_mode(), record_blocks(model, [1]) as outputs:
            model(torch.tensor([loop.ids]))
        rises += [outputs[1][0][0, last] - outputs[1][0][0, first] for first, last in repeated_tokens(loop)]
    direction = torch.stack(rises).mean(dim=0)
    return planted(model, direction / direction.square().sum())


def planted(model, direction):
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(6, 32, generator=generator)
    W_dec[1] = model.lm_head.weight[50].detach()
    W_enc = torch.zeros(32, 6)
    W_enc[:, :3] = torch.stack([2 * direction, direction, -direction], dim=1)
    return FrozenSAE(
        W_enc=W_enc,
        b_enc=torch.full((6,), 1000.0),  # always active, so that the rise of the activation is that of the residual
        W_dec=W_dec,
        b_dec=torch.zeros(32),
        activation="relu",
        block=1,
        source=SAESource("owner/sae", "a" * 40, "layer1.sae.pt", "made", Path("nowhere")),
    )


def find(model, sae, tokenizer, **options):
    return find_repetition_features(
        model, sae, **{"prompts": PROMPTS, "tokenizer": tokenizer, **QUICK, "strength": 6.0, **options}
    )


def test_feature_that_makes_the_model_loop_wins_over_one_that_only_rises_more(model, sae, tokenizer):
    by_increase = find(model, sae, tokenizer, rank_by="increase")
    assert by_increase.names == ("repetition.1.0", "repetition.1.1")
    by_cause = find(model, sae, tokenizer)
    assert by_cause.names == ("repetition.1.1", "repetition.1.0")  # feature 2 falls in loops: no candidate
    scores = {name: score.tolist() for name, score in by_cause.scores.items()}
    assert scores["up"][0] > 0.8  # from no answer to all but one of six
    assert scores["up"][1] < 0.5
    assert scores["causal"] == pytest.approx([up + down for up, down in zip(scores["up"], scores["down"])])
    # mean of the projections on a direction scaled so that its own is 1; feature 0 reads twice that
    assert scores["increase"] == pytest.approx([1.0, 2.0], rel=0.2)


def test_with_vllm_the_same_feature_wins(model, sae, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
    model.save_pretrained(tmp_path / "model")
    found = find(str(tmp_path / "model"), sae, tokenizer, engine="vllm", num_features=1, num_candidates=2)
    assert found.names == ("repetition.1.1",) and found.notes["engine"] == "vllm"
    assert found.notes["endless_looping"] == 1.0  # greedy, as the loops were found
    searched, pushed = fake_vllm.LLM.started
    assert not searched.sets and [len(each) for each in pushed.sets.values()] == [3]  # and a random direction
    assert not searched.is_running and not pushed.is_running


def test_set_says_what_it_is_and_how_it_was_found(model, sae, tokenizer, samples):
    model.config._name_or_path = "owner/model"
    found = find(model, sae, tokenizer)
    assert found.base_model == "owner/model"
    assert found.target_groups == ("loop",)
    assert found.groups == GROUPS == ("benign", "loop", "normal")
    assert set(found.scores) >= {"increase", "causal", "up", "down", "benign", "firing_rate", "firing_rate_normal"}
    notes = found.notes
    assert notes["num_loops"] == 10
    assert notes["num_normal_prompts"] == notes["num_looping_prompts"] == 6
    assert notes["endless_looping"] == 1.0
    assert notes["endless_normal"] == 0.0
    assert set(notes["random"]) == {"1"}
    assert json.loads(json.dumps(notes)) == notes

    # the norms and the statistics of "normal" are those of normal answers alone
    residuals = []
    for text in samples.normal_texts():
        with torch.inference_mode(), record_blocks(model, [1]) as outputs:
            model(torch.tensor([text.ids]))
        residuals.append(outputs[1][0][0][list(text.counted)])
    residuals = torch.cat(residuals)
    torch.testing.assert_close(found.residual_norms[0], residuals.norm(dim=1).median())
    pre = sae.pre_activations(residuals)[:, 1]
    torch.testing.assert_close(found.mean[0, 2], pre.mean(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.std[0, 2], pre.std(correction=0), rtol=1e-2, atol=1e-3)


def test_several_blocks_are_searched_at_once(model, sae, tokenizer):
    other = FrozenSAE(**{**vars(sae), "block": 0, "W_enc": torch.randn(32, 6)})
    found = find(model, [other, sae], tokenizer, num_features=1)
    assert found.blocks == (0, 1)
    assert found.names[1] == "repetition.1.1"
    assert set(found.notes["random"]) == {"0", "1"}


def test_features_of_another_site_are_searched_and_pushed_there(model, sae, tokenizer):
    others = [FrozenSAE(**{**vars(sae), "site": site, "W_enc": torch.randn(32, 6)}) for site in ("mlp_out", "attn_z")]
    found = find(model, others, tokenizer, num_features=1, num_candidates=1, num_prompts=2)
    assert found.places == ((1, "attn_z"), (1, "mlp_out"))
    assert found.names[0] == f"repetition.1.mlp_out.{found.feature_ids[0]}"
    assert set(found.notes["random"]) == {"1.mlp_out", "1.attn_z"}
    assert find(model, others, tokenizer, rank_by="increase", site="attn_z").places == ((1, "attn_z"),)


def test_features_that_rise_in_benign_repetition_are_named(model, sae, tokenizer, caplog, monkeypatch):
    found = find(model, sae, tokenizer, rank_by="increase")
    shares = (found.scores["benign"] / found.scores["increase"]).tolist()
    expected = [name for name, share in zip(found.names, shares) if share >= 0.5]
    assert found.notes["fires_on_benign"] == expected
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(repetition, "BENIGN_SHARE", -100.0)
        flagged = find(model, sae, tokenizer, rank_by="increase").notes["fires_on_benign"]
    assert flagged == ["repetition.1.0", "repetition.1.1"]
    assert "Feature repetition.1.0 also rises in benign repetition" in caplog.text


def test_loops_can_be_given_as_ids_texts_or_rows(model, sae, tokenizer):
    as_ids = [[5, 6, 7, 8, *range(100, 130), *([70 + i, 80, 90] * 30)] for i in range(8)]
    found = find(model, sae, tokenizer, prompts=None, loops=as_ids, rank_by="increase", num_features=1, num_loops=8)
    assert found.notes["num_loops"] == found.notes["num_normal"] == 8
    head = "these are thirty characters or more "
    texts = [head + f"ab{i}" * 30 for i in range(8)]
    rows = [{"text": text} for text in texts[:4]] + [
        {"prompt": head, "completion": f"ab{i}" * 30} for i in range(4, 8)
    ]
    for loops in (texts, rows):
        samples = collect(model, tokenizer, questions=None, loops=loops, num_loops=8)
        assert {loop.start for loop in samples.loops} == {len(head)}
        assert {loop.period for loop in samples.loops} == {3}
    assert len(samples.loops[0].question.prompt) == len(head) + 6  # a text is cut two times round into its loop
    assert len(samples.loops[-1].question.prompt) == len(head)


def test_loops_of_the_model_begin_where_it_begins_to_repeat(samples):
    assert len(samples.loops) == 10
    for loop in samples.loops:
        num_prompt = len(loop.question.prompt)
        assert loop.ids[:num_prompt] == loop.question.prompt
        found = find_loop(loop.ids[num_prompt:], finished=False)
        assert (loop.start, loop.period, loop.end) == (num_prompt + found.onset, found.period, len(loop.ids))
    texts = samples.loop_texts(skip_first_round=True)
    assert [text.counted.index(True) for text in texts] == [loop.start + loop.period for loop in samples.loops]
    assert all(not find_loop(answer.ids, finished=False).loop_any for answer in samples.normal)


def test_benign_repetition_is_no_loop_and_is_counted_from_its_second_time_on(tokenizer, samples):
    question = Question((5, 20, 21, 22, 23, 6), (20, 21, 22, 23))
    answer = type(samples.normal[0])(question, tuple(range(100, 180)), True)
    copied, listed, refrain = benign_texts([answer], tokenizer)
    assert copied.ids[6:10] == question.text
    assert repeated_tokens(copied) == [(1, 6), (2, 7), (3, 8), (4, 9)]
    dash, line = tokenizer("- ")["input_ids"], tokenizer("\n")["input_ids"]
    row = [*dash, 100, 101, 102, 103, 104, 105, *line]
    assert list(listed.ids[6 : 6 + len(row)]) == row
    assert list(listed.ids[6 + len(row) :][: len(row)]) == [*dash, 100, 101, 102, 106, 107, 108, *line]
    assert listed.start == 6 + len(row)
    assert refrain.ids.count(100) == refrain.ids.count(123) == 3
    assert refrain.ids.count(124) == 1
    assert refrain.ids[refrain.start] == 100
    for text in benign_texts(samples.normal, tokenizer):
        assert not find_loop(text.ids[len(text.question.prompt) :], finished=True).loop_any


def test_too_few_loops_say_how_many_and_what_to_do(make_model, sae, tokenizer, model):
    with pytest.raises(ValueError, match=r"0 of 24 answers loop endlessly, at least 8 are needed. Set `temperature`"):
        find(model, sae, tokenizer, temperature=3.0)
    with pytest.raises(ValueError, match=r"1 of 2 texts loop .* at least 8 are needed. Give more"):
        find(model, sae, tokenizer, loops=[[5, *([7, 8] * 60)], list(range(5, 100))])
    with pytest.raises(ValueError, match=r"0 of 10 answers at temperature 0.0 are without a loop.*normal_temperature"):
        find(model, sae, tokenizer, normal_temperature=0.0)
    with pytest.raises(ValueError, match=r"Before their loops, 0 texts hold 24 normal tokens or more.*Give `prompts`"):
        find(model, sae, tokenizer, prompts=None, loops=[[5, *([7, 8] * 60)]] * 8, rank_by="increase")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_by": "loops"}, "`rank_by` must be one of 'causal', 'increase', got 'loops'"),
        ({"num_features": 0}, "`num_features` and `num_prompts` must be 1 or more"),
        ({"num_features": 4, "num_candidates": 3}, "`num_candidates` at least `num_features`; got 4, 6 and 3"),
        ({"strength": 0.0}, "`strength` must be above 0, got 0.0"),
        ({"num_loops": 0}, "`num_loops` must be 1 or more, got 0"),
        ({"prompts": None}, "To rank by cause, features are pushed up .* Give `prompts`"),
        ({"prompts": None, "rank_by": "increase"}, "Give `prompts`, which the model answers until it loops, or"),
        ({"prompts": []}, "There are no prompts"),
        ({"prompts": [[5, 6], []]}, "A prompt has no tokens"),
        ({"prompts": [[5, 6], "text"]}, "Give the prompts as texts and rows, or all of them as token ids, not both"),
        ({"prompts": "none.jsonl"}, "There is no file none.jsonl"),
        ({"max_new_tokens": 0}, "`max_new_tokens` and `batch_size` must be 1 or more, got 0"),
        ({"max_new_tokens": 32}, "A loop is 64 tokens or longer, `max_new_tokens` is 32: no answer could show one"),
        ({"max_new_tokens": 63, "loops": [[7, 8] * 60] * 8}, "Set it to 64 or more, or give `loops` and"),
        ({"prompts": PROMPTS[:7]}, "7 prompts are answered once each; at least 8 of the answers have to loop"),
        ({"max_new_tokens": 300}, "do not fit the 256 positions of the model"),
        ({"blocks": [0]}, r"Give one SAE for each block of \[0\]; these read block 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_generated(
    model, tokenizer, options, message, monkeypatch
):
    monkeypatch.setattr(model, "generate", lambda *args, **kwargs: pytest.fail("the model was asked"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find(model, planted(model, torch.ones(32)), tokenizer, **options)


def test_no_feature_that_rises_is_an_error(model, sae, tokenizer):
    falling = FrozenSAE(**{**vars(sae), "W_enc": -sae.W_enc.abs() * 0})
    with pytest.raises(ValueError, match="No feature of block 1 rises in loops"):
        find(model, falling, tokenizer)


def test_block_in_which_chance_does_as_much_is_named(model, sae, tokenizer, caplog):
    find(model, sae, tokenizer, strength=1e-3, num_features=1)  # too weak to do anything
    assert "No candidate of block 1 changes the rate of endless answers more than a random direction" in caplog.text


def test_texts_are_asked_raw_and_rows_of_messages_through_the_template(tokenizer):
    plain = tokenizer("ab")["input_ids"]
    row = {"prompt": [{"role": "user", "content": "ab"}], "lang": "xx", "id": 1}
    raw, turn = len(plain), len(plain) + 3  # user, end of turn, assistant
    for given, lengths in (
        (["ab", {"prompt": "ab"}], [raw, raw]),
        ([{"prompt": "ab"}, row], [raw, turn]),
        ([{"messages": row["prompt"]}], [turn]),
    ):
        questions = read_questions(given, tokenizer)
        assert all(question.text == tuple(plain) for question in questions)
        assert [len(question.prompt) for question in questions] == lengths
    assert read_questions([[2, *plain, 1, 3]], tokenizer)[0] == Question((2, *plain, 1, 3), tuple(plain))


@pytest.mark.slow
def test_help_model_has_a_feature_that_makes_it_loop_where_a_random_direction_does_not(help_folder):
    with gzip.open(help_folder / "data" / "help" / "en.jsonl.gz", "rt", encoding="utf-8") as file:
        titles = [json.loads(line)["title"] + "\n" for line in islice(file, 64)]
    model = help_folder / "models" / "help-qwen3-7m"
    found = find_repetition_features(
        str(model),
        model / "sae",
        blocks=[5],
        k=32,
        prompts=titles,
        num_loops=16,
        num_prompts=8,
        max_new_tokens=128,
        normal_temperature=0.6,
        strength=1.0,
        batch_size=64,
        num_features=1,
    )
    assert found.base_model == "help-qwen3-7m"
    assert found.notes["endless_normal"] < 0.2
    assert found.scores["up"][0] >= 0.6
    assert found.notes["random"]["5"]["up"] <= 0.2
