import numpy as np
import pytest
import torch

from sae_posttrain.measure.answers.generate import generate_answers


def test_answer_does_not_depend_on_the_prompts_beside_it(make_model, tokenizer):
    model = make_model()
    prompts = [tokenizer(text)["input_ids"] for text in ("a", "a longer prompt", "저장")]
    together, finished = generate_answers(model, tokenizer, prompts, max_new_tokens=10, temperature=0)
    alone = [generate_answers(model, tokenizer, [ids], max_new_tokens=10, temperature=0)[0][0] for ids in prompts]
    assert together == alone
    assert [len(ids) == 10 for ids in together] == [not ended for ended in finished]


def test_answer_ends_before_its_end_token(make_model, tokenizer, monkeypatch):
    model = make_model()
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    new = torch.tensor([[10, 11, end, pad], [12, 13, 14, 15], [end, pad, pad, pad]])
    monkeypatch.setattr(
        model,
        "generate",
        lambda input_ids, attention_mask, generation_config, logits_processor: torch.cat([input_ids, new], dim=1),
    )
    answers, finished = generate_answers(model, tokenizer, [[5], [6, 7], [8]], max_new_tokens=4)
    assert answers == [[10, 11], [12, 13, 14, 15], []]
    assert finished == [True, False, True]


def test_padding_is_left_and_masked(make_model, tokenizer, monkeypatch):
    model, seen = make_model(), {}

    def generate(input_ids, attention_mask, generation_config, logits_processor):
        seen.update(ids=input_ids.tolist(), mask=attention_mask.tolist(), config=generation_config)
        return input_ids

    monkeypatch.setattr(model, "generate", generate)
    generate_answers(model, tokenizer, [[5], [6, 7, 8]], max_new_tokens=4, temperature=0.7, top_p=0.9)
    pad = tokenizer.pad_token_id
    assert seen["ids"] == [[pad, pad, 5], [6, 7, 8]]
    assert seen["mask"] == [[0, 0, 1], [1, 1, 1]]
    assert (seen["config"].do_sample, seen["config"].temperature, seen["config"].top_p) == (True, 0.7, 0.9)
    assert seen["config"].top_k == 0
    generate_answers(model, tokenizer, [[5]], max_new_tokens=4, temperature=0)
    assert not seen["config"].do_sample


def test_model_is_left_as_it_was(make_model, tokenizer):
    model = make_model().train()
    model.model.layers[0].eval()  # a frozen part stays in its own mode
    modes = [module.training for module in model.modules()]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    generate_answers(model, tokenizer, [[5, 6]], max_new_tokens=3)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert not any(tensor.is_inference() for tensor in [*model.parameters(), *model.buffers()])


def test_mode_is_put_back_when_generation_fails(make_model, tokenizer, monkeypatch):
    model = make_model().train()

    def fail(**_kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate_answers(model, tokenizer, [[5, 6]], max_new_tokens=3)
    assert model.training


def test_sampling_follows_the_probabilities(make_model, tokenizer):
    model = make_model()
    prompt = tokenizer("저장")["input_ids"]
    with torch.no_grad():
        probabilities = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    ends = {tokenizer.eos_token_id}
    answers, _ = generate_answers(model, tokenizer, [prompt] * 2_000, max_new_tokens=1, top_p=1.0)
    likeliest = int(probabilities.argmax())
    share = np.mean([ids == [likeliest] or (likeliest in ends and ids == []) for ids in answers])
    p = float(probabilities[likeliest])
    # 4 standard errors
    assert abs(share - p) < 4 * (p * (1 - p) / 2_000) ** 0.5


def test_answer_that_does_not_fit_the_model_is_refused(make_model, tokenizer):
    with pytest.raises(ValueError, match="A prompt of 6 tokens and an answer of 251 do not fit the 256 positions"):
        generate_answers(make_model(), tokenizer, [[5] * 6], max_new_tokens=251)
    with pytest.raises(ValueError, match="A prompt has no tokens"):
        generate_answers(make_model(), tokenizer, [[]])
