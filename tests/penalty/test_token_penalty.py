"""Which tokens a setting means, at which positions their probability is read, and what is refused."""

import json

import pytest
import torch

from sae_posttrain.measure.faults.script_tokens import script_tokens
from sae_posttrain.penalty.groups import PADDING, GroupTable
from sae_posttrain.penalty.token_penalty import TokenPenalty, read_token_ids


class Head:
    """Five tokens; the state is the logits."""

    vocab_size = 5

    def logits(self, hidden):
        return hidden


def test_mass_is_read_where_a_token_of_another_group_is_predicted_and_is_none_of_the_set():
    penalty = TokenPenalty([3, 4], GroupTable.for_tokens(["zh"]))
    hidden = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tokens = torch.tensor([[0, 1, 2, 3, 1], [0, 1, 2, 1, 2]])
    groups = torch.tensor([[1, 1, 1, 1, PADDING], [0, 0, 0, 1, 1]])  # 0 is zh, 1 every other group
    mask = torch.tensor([[False, False, True, True, True], [False, True, True, True, True]])
    reading = penalty(hidden, Head(), tokens, groups, mask)
    # Row 0: token 2 counts; 3 is in the set, the last is padding. Row 1: the first two are of zh, then two count.
    probabilities = hidden.softmax(dim=-1)[..., [3, 4]].sum(dim=-1)
    expected = probabilities[0, 1] + probabilities[1, 2] + probabilities[1, 3]
    assert reading.num_counted == 3
    assert torch.allclose(reading.mass_sum, expected)
    reading.mass_sum.backward()
    reached = hidden.grad.abs().sum(dim=-1) > 0
    assert reached.nonzero().tolist() == [[0, 1], [1, 2], [1, 3]]


def test_batch_without_a_position_that_counts_has_a_mass_of_zero():
    penalty = TokenPenalty([3], GroupTable.for_tokens(["zh"]))
    none = torch.zeros(1, 4, dtype=torch.bool)
    reading = penalty(torch.randn(1, 4, 5), Head(), torch.zeros(1, 4).long(), torch.ones(1, 4).long(), none)
    assert (reading.mass_sum.item(), reading.num_counted.item()) == (0, 0)


def test_a_language_means_the_tokens_of_its_script(tokenizer):
    ids = read_token_ids("zh", tokenizer, len(tokenizer))
    assert ids == script_tokens(tokenizer, "zh").ids
    assert 0 < len(ids) < len(tokenizer)


def test_a_file_of_token_ids_is_taken_as_it_is(tmp_path):
    file = tmp_path / "ids.json"
    file.write_text("[7, 3, 7]")
    assert read_token_ids(str(file), None, 10) == (3, 7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no token, so a penalty would change nothing"),
        (json.dumps(list(range(10))), "holds every token of the vocabulary"),
        ("[3, 10]", "holds the token 10, and the model knows 10: 0 to 9"),
        ("[-1]", "holds the token -1"),
        ('{"3": 1}', "holds no list of token ids"),
        ("[true]", "holds no list of token ids"),
        ("[3.0]", "holds no list of token ids"),
        ("3, 4", "cannot be read as JSON .JSONDecodeError."),
        (None, "cannot be read as JSON .FileNotFoundError."),
    ],
)
def test_a_set_that_cannot_be_used_is_refused(tmp_path, content, message):
    file = tmp_path / "ids.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_token_ids(str(file), None, 10)


def test_a_language_that_no_tokens_stand_for_is_refused(tokenizer):
    with pytest.raises(ValueError, match="Unknown language 'klingon'"):
        read_token_ids("klingon", tokenizer, len(tokenizer))
    with pytest.raises(ValueError, match="the trainer has no tokenizer"):
        read_token_ids("zh", None, 10)
    with pytest.raises(ValueError, match="Was the list made with another model's tokenizer"):
        read_token_ids("zh", tokenizer, 10)
