import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from sae_posttrain.features.find.causal import (
    AblationCheck,
    check_by_ablation,
    output_scores,
    prompts_of_other_groups,
    target_tokens,
)
from sae_posttrain.features.read.texts import Text, batches

GROUPS = ["en", "zh"]
LAST = (1, "resid_post")


def plain(group: str, *ids: int) -> Text:
    return Text(group, ids, (True,) * len(ids))


def random_texts(num: int = 6) -> list[Text]:
    random = torch.Generator().manual_seed(0)
    texts = []
    for i in range(num):
        ids = torch.randint(4, 200, (5 + 3 * i,), generator=random).tolist()
        counted = (torch.rand(len(ids), generator=random) < 0.7).tolist()
        texts.append(Text(GROUPS[i % 2], tuple(ids), (False, True, *counted[2:])))
    return texts


def test_target_tokens_are_those_that_only_the_target_uses():
    texts = [
        plain("zh", 1, 1, 2, 2, 3, 4, 4, 4, 4, 4),
        plain("en", 2, 5, 5, 5, 5, 5, 5, 5, 5, 4),
        plain("ko", 5, 5, 5, 5, 5, 5, 5, 5, 5, 5),
    ]
    # token 1: 2 of 10 against 0. Token 2: 0.2 against 0.1, a share of 2/3. Token 3: used once, that may be chance.
    # Token 4: 0.5 against 0.1, a share of 5/6. Token 5: not used by the target.
    assert target_tokens(texts, "zh", 8).nonzero().flatten().tolist() == [1]
    assert target_tokens(texts, "zh", 8, min_share=0.8).nonzero().flatten().tolist() == [1, 4]
    assert target_tokens(texts, "zh", 8).shape == (8,)


def test_long_texts_of_a_group_weigh_no_more_than_short_ones():
    zh, en = plain("zh", 1, 1, 2, 2), plain("en", 1, *[3] * 39)
    # token 1: 1/2 of zh, 1/40 of en, a share of 20/21, although a count of 2 against 1
    assert target_tokens([zh, en], "zh", 4).tolist() == [False, True, True, False]
    # the same counts in a short text of en: 1/2 against 1/2
    assert target_tokens([zh, plain("en", 1, 3)], "zh", 4).tolist() == [False, False, True, False]


def test_tokens_that_do_not_count_do_not_stand_for_the_target():
    texts = [Text("zh", (1, 1, 2, 2), (False, False, True, True)), plain("en", 3), Text("en", (4,), (False,))]
    assert target_tokens(texts, "zh", 5).nonzero().flatten().tolist() == [2]


def test_prompts_are_of_one_length_and_from_the_other_groups_in_turn():
    def text(group: str, number: int, length: int) -> Text:
        return plain(group, *[number] * length)

    texts = [text("en", 1, 40), text("en", 2, 32), text("en", 3, 50), text("en", 4, 31), text("ko", 5, 33)]
    texts += [text("zh", 6, 40)]
    prompts = prompts_of_other_groups(texts, "zh", 3)
    assert prompts.shape == (3, 32)
    assert prompts[:, 0].tolist() == [1, 5, 2]
    # number 4 is too short, number 6 is of the target
    assert prompts_of_other_groups(texts, "zh", 10)[:, 0].tolist() == [1, 5, 2, 3]


def test_texts_too_short_for_prompts_are_an_error():
    texts = [plain("en", *range(31)), plain("zh", *range(40))]
    with pytest.raises(ValueError, match="No text of the other groups has the 32 tokens.*Give longer texts"):
        prompts_of_other_groups(texts, "zh", 4)


@pytest.fixture
def prompts() -> torch.Tensor:
    return torch.randint(4, 200, (3, 32), generator=torch.Generator().manual_seed(0))


def test_direction_that_writes_the_target_tokens_scores_above_0_and_its_opposite_below(make_model, prompts):
    model = make_model().eval()
    tokens = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    tokens[40:50] = True
    writes = model.lm_head.weight[tokens].mean(dim=0).detach()
    tokens_elsewhere = model.lm_head.weight[100:110].mean(dim=0).detach()
    up, down, other = output_scores(
        model, prompts, torch.stack([writes, -writes, tokens_elsewhere]), LAST, tokens, 50.0
    )
    assert up > 0.2
    assert -0.1 < down < 0
    assert other < up / 4


@pytest.mark.parametrize("block", [0, 1])
def test_output_scores_are_those_of_one_prompt_and_one_direction_at_a_time(make_model, prompts, block):
    model, strength = make_model().eval(), 3.0
    tokens = torch.rand(model.config.vocab_size, generator=torch.Generator().manual_seed(1)) < 0.2
    directions = 7 * torch.randn(5, 32, generator=torch.Generator().manual_seed(2))

    @torch.no_grad()
    def probability(prompt, added) -> float:
        with model.model.layers[block].register_forward_hook(lambda _m, _a, hidden: hidden + added):
            logits = model(input_ids=prompt[None]).logits[0]
        return sum(float(logits[t].softmax(dim=0)[tokens].sum()) for t in (-4, -3, -2, -1)) / 4  # the last positions

    expected = [
        sum(probability(p, strength * d / d.norm()) - probability(p, torch.zeros(32)) for p in prompts) / len(prompts)
        for d in directions
    ]
    for per_pass in (1, 2, 8):
        scores = output_scores(
            model, prompts, directions, (block, "resid_post"), tokens, strength, directions_per_pass=per_pass
        )
        assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert not model.model.layers[block]._forward_hooks


@pytest.mark.parametrize("site", ["attn_z", "mlp_out"])
def test_output_scores_are_those_of_a_push_at_the_site(make_model, prompts, site):
    model, strength = make_model().eval(), 3.0
    tokens = torch.rand(model.config.vocab_size, generator=torch.Generator().manual_seed(1)) < 0.2
    direction = torch.randn(32, generator=torch.Generator().manual_seed(2))
    added = strength * direction / direction.norm()
    block = model.model.layers[0]

    def probability() -> float:
        with torch.no_grad():
            return float(model(input_ids=prompts).logits[:, -4:].softmax(dim=-1)[..., tokens].sum(dim=-1).mean())

    plain = probability()
    if site == "attn_z":
        handle = block.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: (args[0] + added,))
    else:
        handle = block.mlp.register_forward_hook(lambda _m, _a, output: output + added)
    with handle:
        expected = probability() - plain
    score = output_scores(model, prompts, direction[None], (0, site), tokens, strength)
    assert score.tolist() == pytest.approx([expected], abs=1e-5)


def echoing_model(make_model, tokens_and_axes: dict[int, int]):
    """A model that repeats the last token: each of these has an axis of its own, and the blocks add nothing."""
    model = make_model().eval()
    with torch.no_grad():
        for weights in (model.model.embed_tokens.weight, model.lm_head.weight):
            weights.zero_()
            for token, axis in tokens_and_axes.items():
                weights[token, axis] = 1
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    return model


def with_directions(features, rows: list[torch.Tensor]):
    """The set's first features, all of block 1, with these directions."""
    return replace(features[: len(rows)], directions=torch.stack(rows), blocks=(1,) * len(rows))


def test_removing_what_carries_a_group_hurts_that_group_alone(make_model, make_features):
    model = echoing_model(make_model, {10: 0, 20: 1})
    repeats = [Text("zh", (10,) * 6, (False,) + (True,) * 5), Text("en", (20,) * 9, (False,) + (True,) * 8)]
    only_zh = with_directions(make_features(), [3 * torch.eye(32)[0]])
    check = check_by_ablation(model, list(batches(repeats, GROUPS, 2)), GROUPS, only_zh)
    # The final norm makes the residual √32 long: a logit of √32 on the right token and 0 on the other 259.
    # Without its axis the residual of zh is 0, so that all 260 tokens are as likely.
    vocabulary = model.config.vocab_size
    known = math.log(math.exp(math.sqrt(32)) + vocabulary - 1) - math.sqrt(32)
    assert check.loss == pytest.approx({"en": known, "zh": known}, rel=1e-4)
    assert check.loss_without == pytest.approx({"en": known, "zh": math.log(vocabulary)}, rel=1e-4)
    assert check.increase["en"] == pytest.approx(0, abs=1e-5)
    assert check.increase["zh"] == pytest.approx(math.log(vocabulary) / known - 1, rel=1e-3)


def test_increase_is_relative():
    assert AblationCheck({"zh": 2.0}, {"zh": 3.0}).increase == {"zh": 0.5}


@torch.no_grad()
def naive_losses(model, texts, directions: dict[int, torch.Tensor]) -> dict[str, float]:
    """Mean loss of the tokens that count, one unpadded text at a time, the directions projected off by hand."""

    def project_off(directions_FD):
        # h − Dᵀ (D Dᵀ)⁺ D h, the projection off the span of the rows of D
        projection = directions_FD.T @ torch.linalg.pinv(directions_FD @ directions_FD.T) @ directions_FD
        return lambda _module, _args, hidden: hidden - (hidden.double() @ projection).float()

    handles = [model.model.layers[b].register_forward_hook(project_off(d.double())) for b, d in directions.items()]
    total, num = Counter(), Counter()
    for text in texts:
        logits = model(input_ids=torch.tensor([text.ids])).logits[0]
        for t in range(1, len(text.ids)):
            if text.counted[t]:
                total[text.group] += float(cross_entropy(logits[t - 1], torch.tensor(text.ids[t])))
                num[text.group] += 1
    for handle in handles:
        handle.remove()
    return {group: total[group] / num[group] for group in GROUPS}


def test_check_is_the_loss_with_the_span_of_the_directions_projected_off(make_model, make_features):
    model, texts, features = make_model().eval(), random_texts(), make_features(blocks=(0, 1), per_block=2)
    check = check_by_ablation(model, batches(texts, GROUPS, 4), GROUPS, features)
    directions = {block: features.select(block=block).directions for block in (0, 1)}
    assert check.loss == pytest.approx(naive_losses(model, texts, {}), rel=1e-5)
    assert check.loss_without == pytest.approx(naive_losses(model, texts, directions), rel=1e-5)
    assert check.loss != pytest.approx(check.loss_without, rel=1e-2)


def test_directions_are_removed_at_their_own_site(make_model, make_features):
    model, texts = make_model().eval(), random_texts()
    features = replace(make_features(blocks=(0,)), sites=("mlp_out", "mlp_out"))
    check = check_by_ablation(model, batches(texts, GROUPS, 4), GROUPS, features)
    projection = torch.linalg.pinv(features.directions) @ features.directions
    down = model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():  # what the MLP writes is linear in this matrix
        down.copy_(down - projection @ down)
    assert check.loss_without == pytest.approx(naive_losses(model, texts, {}), rel=1e-5)


def test_parallel_directions_remove_no_more_than_their_span(make_model, make_features):
    model, texts, features = make_model().eval(), random_texts(), make_features()
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    parallel = with_directions(features, [direction, -2 * direction, 0 * direction])
    check = check_by_ablation(model, list(batches(texts, GROUPS, 4)), GROUPS, parallel)
    assert check.loss_without == pytest.approx(naive_losses(model, texts, {1: direction[None]}), rel=1e-5)


def test_model_writes_as_before_after_the_check(make_model, make_features):
    model, texts = make_model().eval(), random_texts()
    inputs = torch.tensor([texts[-1].ids])
    before = model(input_ids=inputs).logits
    check_by_ablation(model, batches(texts, GROUPS, 4), GROUPS, make_features())
    assert model(input_ids=inputs).logits.equal(before)
    assert not any(module._forward_hooks for module in model.modules())


def test_check_takes_few_texts_a_pass_and_few_positions_a_tile(make_model, make_features, monkeypatch):
    model, texts = make_model(), random_texts()
    features = make_features()
    whole = check_by_ablation(model, batches(texts, GROUPS, 6), GROUPS, features)
    vocab, longest = model.config.vocab_size, max(len(text.ids) for text in texts)
    monkeypatch.setattr("sae_posttrain.features.find.causal._LOGITS_PER_PASS", 2 * longest * vocab)
    monkeypatch.setattr("sae_posttrain.features.find.causal._LOGITS_PER_TILE", 3 * vocab)
    passes, tiles = [], []

    def watched(logits, *args, **kwargs):
        tiles.append(len(logits))
        return cross_entropy(logits, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", watched)
    with model.register_forward_hook(lambda _model, _args, output: passes.append(len(output.logits))):
        tiled = check_by_ablation(model, batches(texts, GROUPS, 6), GROUPS, features)
    assert max(passes) == 2 and max(tiles) == 3
    for group in GROUPS:
        assert tiled.loss[group] == pytest.approx(whole.loss[group], rel=1e-5)
        assert tiled.loss_without[group] == pytest.approx(whole.loss_without[group], rel=1e-5)
