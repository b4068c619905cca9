"""The token that closes the assistant's turn, as the chat template has it."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    SuppressTokensLogitsProcessor,
)

from sae_posttrain.measure.answers.end_of_turn import (
    answer_end_ids,
    end_of_turn_id,
    why_never_ending,
    why_rollouts_run_on,
)
from sae_posttrain.measure.answers.generate import generate_answers

MARKERS = ["<|eos|>", "<|start|>", "<|end|>", "<s>", "<|return|>", "<unk>", "<|user|>", "<|bot|>"]
TURN = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
PLAIN_TURN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"
TEMPLATES = {
    "a base model with the template of its chat model": (TURN, "<|end|>"),
    "marks of generation": (
        "{% for m in messages %}<|start|>{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}\n{% endfor %}",
        "<|end|>",
    ),
    "content trimmed, blanks before the end": (
        "{% for m in messages %}{{ m['content'] | trim }} <|end|>{% endfor %}",
        "<|end|>",
    ),
    "an end of the turn, then one of the text": (TURN + "<|eos|>", "<|end|>"),
    "several tokens": ("{% for m in messages %}{{ m['content'] }}\n<|end|><|return|>{% endfor %}", "<|end|>"),
    "another token at the end of the last turn": (
        "{% for m in messages %}{{ m['content'] }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endfor %}",
        "<|return|>",
    ),
    "the last turn is left open, the next one ends it": (
        "{% for m in messages %}{{ '<|user|>' if m['role'] == 'user' else '<|bot|>' }}{{ m['content'] }}{% endfor %}",
        "<|user|>",
    ),
    "a beginning of text is no end": ("{% for m in messages %}{{ m['content'] }}<s>{% endfor %}", None),
    "ordinary words": (PLAIN_TURN, None),
    "an end that the tokenizer does not know": (TURN.replace("<|end|>", "<|finis|>"), None),
    "needs a system turn": ("{% if messages[0]['role'] != 'system' %}{{ raise_exception('no') }}{% endif %}", None),
    "leaves answers out": ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}<|end|>", None),
    "no template": (None, None),
}


@pytest.fixture
def base_tokenizer():
    """Bytes and the markers of a chat template; its own end token is `<|eos|>`."""
    tokens = [*MARKERS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(MARKERS)
    named = {"eos_token": "<|eos|>", "pad_token": "<|eos|>", "bos_token": "<s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


@pytest.mark.parametrize("case", TEMPLATES)
def test_end_of_turn_is_what_follows_the_answer(case, base_tokenizer):
    base_tokenizer.chat_template, end = TEMPLATES[case]
    found = end_of_turn_id(base_tokenizer)
    assert found == (None if end is None else base_tokenizer.convert_tokens_to_ids(end))


@pytest.mark.parametrize("own", [0, [0, 4], None])
def test_ends_are_those_of_model_tokenizer_and_template(own, base_tokenizer):
    base_tokenizer.chat_template = TURN
    assert answer_end_ids(GenerationConfig(eos_token_id=own), base_tokenizer) == (
        [0, 2, 4] if own == [0, 4] else [0, 2]
    )


def test_answer_of_a_base_model_ends_with_its_turn(make_model, base_tokenizer):
    base_tokenizer.chat_template = TURN
    model = make_model()
    model.resize_token_embeddings(len(base_tokenizer))
    model.generation_config.eos_token_id = 0  # the model's own, which is never written here
    allowed = [token for token in range(len(base_tokenizer)) if token != 2]
    only_the_end = LogitsProcessorList([SuppressTokensLogitsProcessor(allowed)])
    options = {"max_new_tokens": 4, "temperature": 0, "logits_processor": only_the_end}
    assert generate_answers(model, base_tokenizer, [[30, 31]], **options) == ([[]], [True])
    base_tokenizer.chat_template = None
    assert generate_answers(model, base_tokenizer, [[30, 31]], **options) == ([[2] * 4], [False])


CONFIG = GenerationConfig(eos_token_id=0)


def test_rows_whose_end_no_generation_knows_are_told_with_what_to_set(base_tokenizer):
    base_tokenizer.chat_template = TURN
    rows = [{"input_ids": [1, 20, 2, 30, 31, 2], "labels": [-100, -100, -100, 30, 31, 2]}]
    message = why_never_ending(rows, base_tokenizer, CONFIG)
    assert "Generation stops at '<|eos|>' (0), and the training rows end their answers with '<|end|>' (2)" in message
    assert "Set `eos_token: '<|end|>'`" in message
    cloned = why_never_ending(rows, base_tokenizer, CONFIG, cloned_template=True)
    assert "save that template as a .jinja file" in cloned
    assert why_never_ending(rows, base_tokenizer, GenerationConfig(eos_token_id=[0, 2])) is None
    assert why_never_ending([*rows, {"input_ids": [5, 0]}], base_tokenizer, CONFIG) is None


def test_rows_without_any_end_are_told(base_tokenizer):
    base_tokenizer.chat_template = TURN
    rows = [{"input_ids": [30, 2], "labels": [30, -100]}]
    message = why_never_ending(rows, base_tokenizer, CONFIG)
    assert "none of the first 1 training rows has such a token to learn" in message
    assert "put it inside the template's `{% generation %}`" in message
    base_tokenizer.chat_template = None
    assert "End each answer with one of these tokens." in why_never_ending(rows, base_tokenizer, CONFIG)
    assert why_never_ending([{"input_ids": [3], "labels": [-100]}], base_tokenizer, CONFIG) is None


def test_rollouts_that_would_run_on_are_told(base_tokenizer):
    base_tokenizer.chat_template = TURN
    assert why_rollouts_run_on(base_tokenizer, [0, 2]) is None
    message = why_rollouts_run_on(base_tokenizer, [0])
    assert "ends a turn with '<|end|>' (2), and rollouts stop only at '<|eos|>' (0)" in message
