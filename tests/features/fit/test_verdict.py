import dataclasses

import pytest
import torch

from sae_posttrain.features.fit.fit import SAEFit, measure_fit
from sae_posttrain.features.fit.verdict import format_fits, judge
from sae_posttrain.features.read.loading import load_model_and_tokenizer
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.lab import contents
from sae_posttrain.saes import load_sae


@pytest.fixture
def fit() -> SAEFit:
    """A good fit of the middle one of three blocks."""
    return SAEFit(
        block=1,
        site="resid_post",
        file="w.pt",
        model="tuned",
        base_model="",
        num_tokens=1000,
        fvu=0.2,
        fvu_by_group={},
        fvu_next_door={0: 0.4, 2: 0.5},
        l0=32.0,
        stated_l0=32.0,
        dead_features=0.1,
        cosine=0.9,
        norm_ratio=0.95,
        residual_norm=100.0,
        loss=3.0,
        loss_with_sae=3.1,
        loss_with_mean=8.0,
        loss_with_zero=13.0,
    )


def test_sae_that_fits_here_and_worse_next_door_belongs(fit):
    word, reason = judge(fit)
    assert word == "belongs"
    assert "leaves 0.200 of the variance unexplained and recovers 99.0 % of the loss" in reason
    assert "Next door it leaves more: 0.400 in block 0 and 0.500 in block 2." in reason


@pytest.mark.parametrize(("fvu", "word"), [(0.7, "belongs"), (0.8, "doubtful"), (0.95, "does not belong")])
def test_sae_hardly_better_than_the_mean_is_doubtful_and_then_a_stranger(fit, fvu, word):
    assert judge(dataclasses.replace(fit, fvu=fvu, fvu_next_door={0: 1.2})).word == word


def test_figure_that_overflowed_is_no_fit(fit):
    assert judge(dataclasses.replace(fit, fvu=float("nan"))).word == "does not belong"


def test_sae_that_fits_the_block_next_door_better_does_not_belong_to_this_one(fit):
    word, reason = judge(dataclasses.replace(fit, fvu_next_door={0: 0.05, 2: 0.5}))
    assert word == "does not belong"
    assert "In block 0 it leaves only 0.050: it reads that one, or one beyond." in reason


@pytest.mark.parametrize("elsewhere", [0.19, 0.203])
def test_blocks_that_an_sae_fits_alike_cannot_be_told_apart(fit, elsewhere):
    word, reason = judge(dataclasses.replace(fit, fvu_next_door={0: elsewhere, 2: 0.5}))
    assert word == "doubtful"
    assert f"In block 0 it leaves {elsewhere:.3f}: which of the two it reads cannot be told." in reason


def test_fit_that_is_worse_than_on_the_base_model_is_that_of_a_relative(fit):
    base = dataclasses.replace(fit, model="owner/base", fvu=0.16, loss_with_sae=3.05)
    word, reason = judge(fit, base)
    assert word == "belongs to a relative"
    assert "On owner/base it leaves 0.160 of it and recovers 99.5 % of the loss: here it is 25 % worse." in reason
    assert judge(fit, dataclasses.replace(base, fvu=0.2)).word == "belongs"
    assert judge(dataclasses.replace(fit, fvu=1.1), base).word == "does not belong"


def test_figures_of_two_saes_are_not_compared(fit):
    with pytest.raises(ValueError, match="Compare one SAE on two models"):
        judge(fit, dataclasses.replace(fit, block=2))


def test_names_that_differ_lead_to_a_measurement_on_the_base_model(fit):
    named = dataclasses.replace(fit, base_model="owner/base")
    assert "Its files name owner/base, this is tuned" in judge(named).reason
    for model in ("owner/base", "base", ""):
        assert "Its files name" not in judge(dataclasses.replace(named, model=model)).reason


def test_page_shows_figures_groups_and_verdicts(fit):
    other = dataclasses.replace(fit, block=0, fvu_next_door={1: 0.9}, l0=100.0, fvu_by_group={"ko": 0.25, "en": 0.1})
    page = format_fits(
        [fit, other], [dataclasses.replace(fit, model="base"), dataclasses.replace(other, model="base")]
    )
    assert "On tuned, 1000 tokens" in page and "On base, 1000 tokens" in page
    assert "Block 1, resid_post: BELONGS. It leaves 0.200" in page
    assert "0.400/0.500" in page and "-/0.900" in page
    assert "100.0 features are active on a token; its files say 32." in page
    assert any(line.split() == ["0", "0.250", "0.100"] for line in page.splitlines())


@pytest.fixture(scope="module")
def lab():
    """The lab's model, its SAEs and a few of its texts."""
    model, tokenizer = load_model_and_tokenizer(str(contents.MODEL), None)
    saes = [load_sae(contents.SAE, block=block) for block in range(4)]
    return model, tokenizer, saes, contents.read_texts("train")[:8]


def measure(lab, saes):
    model, tokenizer, _, texts = lab
    return measure_fit(model, saes, texts, tokenizer=tokenizer, text_options=TextOptions(max_texts=200, max_length=96))


def test_every_sae_of_the_lab_belongs_to_its_own_block_and_to_no_other(lab):
    _, _, saes, _ = lab
    for fit in measure(lab, saes):
        assert judge(fit).word == "belongs", fit
    for shift in (1, 2, 3):
        for fit in measure(lab, [dataclasses.replace(sae, block=(sae.block + shift) % 4) for sae in saes]):
            assert judge(fit).word == "does not belong", fit


def rotated(sae):
    """As of another model of this width, whose residual stream has other axes."""
    random = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(sae.d_model, sae.d_model, generator=random))
    return dataclasses.replace(sae, W_enc=axes.T @ sae.W_enc, W_dec=sae.W_dec @ axes, b_dec=sae.b_dec @ axes)


def permuted(sae):
    """With the directions of other features."""
    order = torch.randperm(sae.num_features, generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(sae, W_dec=sae.W_dec[order])


@pytest.mark.parametrize("spoil", [rotated, permuted])
def test_no_spoiled_sae_belongs_to_the_lab_model(lab, spoil):
    for fit in measure(lab, [spoil(sae) for sae in lab[2]]):
        assert judge(fit).word in ("does not belong", "doubtful"), fit


def test_no_sae_of_the_lab_belongs_to_a_model_with_other_weights(lab):
    model, tokenizer, saes, texts = lab
    torch.manual_seed(0)
    stranger = type(model)(model.config)
    for fit in measure((stranger, tokenizer, saes, texts), saes):
        assert judge(fit).word == "does not belong", fit


def test_fine_tuned_copy_is_a_relative_and_worse_by_a_number(lab):
    model, tokenizer, saes, texts = lab
    tuned = type(model)(model.config)
    tuned.load_state_dict(model.state_dict())
    tuned.train()
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-3)
    for row in texts[:4]:
        ids = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_tensors="pt")["input_ids"]
        tuned(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    (base,), (fit,) = measure(lab, saes[2:3]), measure((tuned, tokenizer, saes, texts), saes[2:3])
    word, reason = judge(fit, base)
    assert word == "belongs to a relative"
    assert f"{100 * (fit.fvu / base.fvu - 1):.0f} % worse" in reason
