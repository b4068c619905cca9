import pickle
from functools import partial

import pytest
import torch

from sae_posttrain.penalty.batches import (
    RowGroupCollator,
    answer_ids,
    answer_tokens,
    behind_the_first,
    earlier_forwards,
)
from sae_posttrain.penalty.datasets import _answer_text
from sae_posttrain.penalty.groups import GROUP_IDS, GroupTable, RowGroups


def table() -> GroupTable:
    return GroupTable(("zh", "ko", "en"), ("zh",))


def test_generated_answers_count_without_what_tools_returned():
    batch = {
        "prompt_ids": torch.ones(1, 2),
        "completion_mask": torch.tensor([[1, 1, 1, 0]]),
        "tool_mask": torch.tensor([[1, 0, 1, 1]]),
    }
    assert answer_tokens(batch).tolist() == [[False, False, True, False, True, False]]


def test_pairs_without_a_mask_count_from_where_they_part():
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 9, 0]]),  # one pair: chosen, rejected
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    assert answer_tokens(batch, pairs=True).tolist() == [[False, False, True, True], [False, False, True, False]]


def test_unknown_batch_is_an_error_that_names_its_keys_and_the_way_out():
    for batch in ({"pixel_values": 0, "labels": torch.tensor([1])}, {"input_ids": torch.ones(2, 3)}):
        with pytest.raises(ValueError, match=f"{next(iter(batch))!r}.*Override `penalised_positions"):
            answer_tokens(batch)


def test_forward_of_kto_on_other_answers_is_passed_over():
    assert earlier_forwards({"KL_input_ids": 0}) == 1
    assert earlier_forwards({"input_ids": 0}) == 0


def test_answer_of_a_row_is_found_whatever_the_trainer():
    assert answer_ids({"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]}) == [2, 3]
    assert answer_ids({"chosen_ids": [1, 2, 3], "rejected_ids": [1, 4]}) == [2, 3]
    assert answer_ids({"prompt_ids": [1], "completion_ids": [2], "label": True}) == [2]
    assert answer_ids({"input_ids": [1, 2], "labels": [-100, 2]}) == [2]
    assert answer_ids({"input_ids": [1, 2]}) == [1, 2]
    assert answer_ids({"text": "a"}) is None


def test_rejected_answers_get_no_group_unless_asked():
    pairs = [{"lang": lang, "chosen_ids": [1], "rejected_ids": [2]} for lang in ("ko", "en")]
    single = [{"lang": "ko", "completion_ids": [1], "label": label} for label in (True, False)]

    def group_ids(rows, which):
        seen = []
        collator = RowGroupCollator(lambda own: seen.append(own) or {"n": 1}, RowGroups(table(), "lang"), which)
        batch = collator(rows)
        assert not any("lang" in row for row in seen[0])
        return batch[GROUP_IDS].tolist()

    assert group_ids(pairs, "chosen") == [1, 2, -1, -1]
    assert group_ids(pairs, "both") == [1, 2, 1, 2]
    assert group_ids(single, "chosen") == [1, -1]
    assert group_ids(single, "both") == [1, 1]


def test_without_a_column_the_answers_script_tells_the_group(tokenizer):
    groups = RowGroups(table(), "lang", partial(_answer_text, tokenizer.decode))
    for number, text in enumerate(("打开它", "여세요", "open")):
        assert groups({"prompt_ids": [1], "completion_ids": tokenizer(text)["input_ids"]}) == number
    with pytest.raises(ValueError, match="which column of the dataset holds the answer; there are text"):
        groups({"text": "a"})
    with pytest.raises(ValueError, match="A row has no column 'lang'.*it has text. Every dataset"):
        RowGroups(table(), "lang")({"text": "a"})


def test_collator_can_be_sent_to_the_workers_of_a_dataloader(tokenizer):
    groups = RowGroups(table(), "lang", partial(_answer_text, tokenizer.decode))
    sent = pickle.loads(pickle.dumps(RowGroupCollator(dict, groups, "chosen")))
    assert sent.groups({"completion_ids": tokenizer("open")["input_ids"]}) == 2


def test_first_positions_of_documents_are_found_in_every_kind_of_batch():
    def starts(num_tokens, **batch):
        rows = next(len(value) for value in batch.values()) if "cu_seq_lens_q" not in batch else 1
        return [(~row).nonzero().flatten().tolist() for row in behind_the_first(batch, (rows, num_tokens))]

    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])  # padded on the right, and on the left
    assert starts(4, attention_mask=mask) == [[0], [0, 2]]
    assert starts(4, prompt_mask=mask[:, :2], completion_mask=mask[:, 2:]) == [[0], [0, 2]]
    assert starts(5, position_ids=torch.tensor([[0, 1, 2, 0, 1]])) == [[0, 3]]
    assert starts(5, cu_seq_lens_q=torch.tensor([0, 3, 5], dtype=torch.int32)) == [[0, 3]]
    assert starts(5, attention_mask=torch.tensor([[1, 1, 2, 2, 0]])) == [[0, 2]]  # documents by number
    assert starts(3, labels=torch.zeros(2, 3)) == [[0], [0]]
