"""Where a fault lies among the tokens, and when features fire relative to it."""

import numpy as np
import pytest

from sae_posttrain.analysis.answers import Answer
from sae_posttrain.analysis.fault_position import fault_tokens, onsets
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.features.read.texts import tokenize


def tokens_of(answer: Answer, tokenizer, **options) -> tuple:
    [text] = tokenize([{**answer.row, "lang": "x"}], tokenizer, TextOptions(**options))
    return text, fault_tokens(answer, text, tokenizer)


@pytest.mark.parametrize("as_messages", [False, True])
def test_characters_of_the_answer_are_found_among_its_tokens(tokenizer, as_messages):
    answer = "say 好的 now"
    row = {"prompt": "好 in the prompt? ", "completion": answer}
    if as_messages:
        row = {
            "prompt": [{"role": "user", "content": "好?"}],
            "completion": [{"role": "assistant", "content": answer}],
        }
    text, inside = tokens_of(Answer(row, True, "", ((4, 6),)), tokenizer)
    assert tokenizer.decode([i for i, faulty in zip(text.ids, inside) if faulty]) == "好的"
    assert inside.sum() == 6  # bytes, each a token: those inside a character belong to it


def test_token_spans_count_from_the_answers_first_token(tokenizer):
    text, inside = tokens_of(Answer({"prompt": "ab", "completion": "cdefg"}, True, "", (), ((2, 4),)), tokenizer)
    assert tokenizer.decode([i for i, faulty in zip(text.ids, inside) if faulty]) == "ef"


def test_a_fault_beyond_the_tokens_that_were_read_is_unknown(tokenizer):
    _, inside = tokens_of(
        Answer({"prompt": "ab", "completion": "cdefg"}, True, "", ((3, 5),)), tokenizer, max_length=4
    )
    assert inside is None
    assert tokens_of(Answer({"text": "abc"}, True, ""), tokenizer)[1] is None


def test_onset_is_the_median_distance_and_rates_are_of_tokens(tokenizer):
    texts = tokenize([{"lang": "x", "text": "abcdefgh"}] * 3, tokenizer)  # the first token does not count
    fault = np.array([0, 0, 0, 0, 0, 1, 1, 1], dtype=bool)
    values = [np.zeros((8, 2), dtype=np.float32) for _ in texts]
    values[0][[3, 5, 6], 0] = 1  # 2 before
    values[1][[4], 0] = 1  # 1 before
    values[2][[2], 0] = 1  # a good answer
    early, never = onsets(texts, [True, True, False], [fault, fault, None], values)
    assert (early.distance, early.num_answers, early.distances) == (-1.5, 2, (-2, -1))
    # before the fault 2 of 2 · 4 tokens that count, in it 2 of 2 · 3, in the good answer 1 of 7
    assert (early.before, early.inside, early.good) == (2 / 8, 2 / 6, 1 / 7)
    assert np.isnan(never.distance) and never.num_answers == 0
    assert onsets(texts, [True, True, False], [None] * 3, values) is None
