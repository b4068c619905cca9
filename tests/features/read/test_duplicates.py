"""Copies of a text stay on one side of every split, so that held-out scores are of texts that were not seen."""

import logging
import random
from pathlib import Path

import pytest
import torch

from sae_posttrain import FrozenSAE, find_directions, find_features
from sae_posttrain.features.read.duplicates import hold_out, num_duplicates, text_key
from sae_posttrain.features.read.grouped_texts import GroupedTexts
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.features.read.texts import Text, split_held_out, tokenize
from sae_posttrain.penalty.probe_texts import ProbeSet
from sae_posttrain.saes.stored.source import SAESource


def text(group: str, number: int) -> Text:
    return Text(group, (1, number), (False, True))


def letters(seed: int, length: int = 24) -> str:
    return "".join(random.Random(seed).choices("abcdefghij ", k=length))


@pytest.mark.parametrize(
    "copy", ["Open the  file.", "open the file.", " OPEN\tTHE\nFILE. ", "Ｏｐｅｎ the file.", "Open\u00a0the file."]
)
def test_case_spaces_and_forms_of_characters_do_not_tell_texts_apart(copy):
    assert text_key(copy) == text_key("Open the file.")


def test_other_words_do():
    assert len({text_key(each) for each in ("a b", "ab", "a b.", "é", "e", "ß", "s", "\ud800")}) == 8
    assert text_key("Straße") == text_key("STRASSE") and text_key("é") == text_key("E\u0301")


def test_split_without_copies_holds_out_the_first_of_each_group():
    texts = {group: [text(group, 10 * number + place) for number in range(10)] for place, group in enumerate("ab")}
    kept, held_out = hold_out(texts, 0.2)
    assert held_out == {group: members[:2] for group, members in texts.items()}
    assert kept == {group: members[2:] for group, members in texts.items()}
    assert hold_out(texts, 0) == (texts, {"a": [], "b": []})


@pytest.mark.parametrize("seed", range(20))
def test_copies_stay_on_one_side_also_across_groups(seed):
    draw = random.Random(seed)
    texts = [text(draw.choice("ab"), number) for number in range(30) for _ in range(3)]
    kept, held_out = split_held_out(texts, 0.2, None, seed)
    assert not {each.ids for each in kept} & {each.ids for each in held_out}
    assert len(kept) + len(held_out) == 90
    for group in "ab":
        share = sum(each.group == group for each in held_out) / sum(each.group == group for each in texts)
        assert 0.1 <= share <= 0.35


@pytest.mark.parametrize("seed", range(10))
def test_a_text_with_very_many_copies_is_not_held_out_while_others_will_do(seed):
    texts = [text("a", 0)] * 50 + [text("a", number) for number in range(1, 6)] + [text("b", 9), text("b", 8)]
    _, held_out = split_held_out(texts, 0.1, None, seed)
    assert 0 not in {each.ids[1] for each in held_out if each.group == "a"}


def test_group_whose_texts_all_stand_in_another_is_divided_with_it():
    texts = [text("a", number) for number in range(10)] + [text("b", number) for number in (3, 4)]
    for seed in range(20):
        kept, held_out = split_held_out(texts, 0.2, None, seed)
        assert {each.group for each in kept} == {each.group for each in held_out} == {"a", "b"}


def test_copies_of_one_text_cannot_be_divided():
    texts = [text("a", 0)] * 6 + [text("b", 1), text("b", 2)]
    with pytest.raises(ValueError, match="the 6 texts of the group 'a' are copies of one. .*two or more different"):
        split_held_out(texts, 0.2, None, 0)
    kept, held_out = split_held_out(texts, 0, None, 0)
    assert (len(kept), held_out) == (8, [])


def test_number_of_copies_is_said(tokenizer, caplog):
    rows = [
        {"lang": lang, "text": each} for lang, each in [("zh", "Abc"), ("zh", "abc "), ("en", "abc"), ("en", "x y")]
    ]
    rows += [{"lang": "zh", "text": "other"}, {"lang": "en", "text": "third"}]
    texts = tokenize(rows, tokenizer)
    assert num_duplicates(texts) == {"zh": 1, "en": 1}
    with caplog.at_level(logging.WARNING):
        split_held_out(texts, 0.2, None, 0)
    assert "2 of 6 texts repeat others, up to case and spaces (zh: 1, en: 1)" in caplog.text


def test_long_texts_that_differ_in_case_are_copies_also_where_they_are_cut(tokenizer):
    rows = [{"lang": "zh", "text": each * 20} for each in ("ｃase ", "case ", "CASE ")]
    assert len({each.key for each in tokenize(rows, tokenizer, TextOptions(max_length=7))}) == 1


def messages(answer: str) -> dict:
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("form", [lambda t: {"text": t}, lambda t: {"prompt": "q: ", "completion": t}, messages])
def test_every_form_of_a_row_is_told_by_what_it_says(form, tokenizer):
    rows = [{"lang": "zh", **form(each)} for each in ("one two", "One  two", "three")]
    assert num_duplicates(tokenize(rows, tokenizer)) == {"zh": 1}


def coin_rows(copies: int = 3, num: int = 24) -> list[dict[str, str]]:
    """Each text several times, in other case and spacing, all with one label that a coin has drawn."""
    forms = (str, str.upper, lambda text: f"  {text} ")
    rows = []
    for number in range(num):
        label = random.Random(1000 + number).choice(["good", "bad"])
        rows += [{"lang": label, "text": forms[copy](letters(number))} for copy in range(copies)]
    return rows


def sides(divided: GroupedTexts) -> tuple[set[str], set[str]]:
    return {each.key for each in divided.kept}, {each.key for each in divided.held_out}


def test_searches_judge_by_texts_that_they_have_not_seen(make_model, tokenizer, monkeypatch):
    seen = []
    divide = GroupedTexts.divide.__func__

    def watched(cls, *args, **kwargs):
        seen.append(divide(cls, *args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(GroupedTexts, "divide", classmethod(watched))
    options = {"target_group": "good", "blocks": [1], "tokenizer": tokenizer}
    found = find_directions(make_model(), coin_rows(), method="probe", max_tokens=400, **options)
    kept, held_out = sides(seen[0])
    assert kept and held_out and not kept & held_out
    assert sum(found.notes["num_duplicates"].values()) == 48


def test_find_features_notes_the_copies(make_model, tokenizer):
    rows = [{"lang": lang, "text": each} for lang, base in (("zh", "xyz "), ("en", "abc ")) for each in [base * 9] * 2]
    rows += [{"lang": "zh", "text": "zyx xyy zz" * 4}, {"lang": "en", "text": "cba abb ccc" * 4}]
    generator = torch.Generator().manual_seed(0)
    sae = FrozenSAE(
        W_enc=torch.randn(32, 64, generator=generator),
        b_enc=torch.zeros(64),
        W_dec=torch.randn(64, 32, generator=generator),
        b_dec=torch.zeros(32),
        activation="relu",
        block=0,
        source=SAESource("", None, "sae.pt", "qwen_scope", Path("sae.pt")),
    )
    found = find_features(make_model(), sae, rows, target_group="zh", num_features=1, tokenizer=tokenizer)
    assert found.notes["num_duplicates"] == {"zh": 1, "en": 1}


def test_probe_set_of_the_drift_reads_one_copy_of_each(tokenizer, caplog):
    rows = [
        {"lang": lang, "text": f"{lang} {letters(n)}"} for lang in ("zh", "en") for n in range(6) for _ in range(3)
    ]
    options = TextOptions(max_texts=10, max_length=32, batch_size=8)
    probe = ProbeSet.from_rows(rows, tokenizer, ["zh"], options)
    assert sum(len(batch.groups) for batch in probe.batches) == 12
    assert "12 texts of zh in the probe set repeat others" in caplog.text
