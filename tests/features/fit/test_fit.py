import dataclasses
import json
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from sae_posttrain.features.fit.fit import measure_fit
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.hooks.edit import edit_sites
from sae_posttrain.hooks.record import record_blocks, record_sites
from sae_posttrain.saes import FrozenSAE, SAESource

WIDTH = 32
TEXTS = ["open the file and save", "press this key now", "선택하세요", "打开文件并保存", "close"]
ROWS = [{"lang": "en" if text.isascii() else "other", "text": text} for text in TEXTS]


def sae_of(W_enc, W_dec, b_dec=None, block=0, file="w.pt", **options) -> FrozenSAE:
    return FrozenSAE(
        W_enc=W_enc,
        b_enc=torch.zeros(W_enc.shape[1]),
        W_dec=W_dec,
        b_dec=torch.zeros(W_enc.shape[0]) if b_dec is None else b_dec,
        block=block,
        source=SAESource("", None, file, "qwen_scope", None),
        **{"activation": "relu", **options},
    )


def perfect(block=0, width=WIDTH, **options) -> FrozenSAE:
    """`x = relu(x) - relu(-x)`: two features a dimension."""
    eye = torch.eye(width)
    return sae_of(torch.cat([eye, -eye], dim=1), torch.cat([eye, -eye]), block=block, **options)


def random_sae(block=0, **options) -> FrozenSAE:
    generator = torch.Generator().manual_seed(1)
    W_dec = torch.randn(64, WIDTH, generator=generator) / 6
    return sae_of(
        W_dec.T.contiguous(), W_dec, 0.1 * torch.ones(WIDTH), block, **{"activation": "topk", "k": 4} | options
    )


def counted_values(model, tokenizer, block=0, texts=TEXTS):
    """What a block writes at all tokens but the first, by hand: `(N, D)`."""
    values = []
    for text in texts:
        with torch.no_grad(), record_blocks(model, [block]) as outputs:
            model(torch.tensor([tokenizer(text)["input_ids"]]))
        values.append(outputs[block][0][0, 1:])
    return torch.cat(values)


def test_perfect_sae_leaves_nothing_unexplained_and_the_loss_as_it_is(make_model, tokenizer):
    for sae in (perfect(), perfect(site="mlp_out"), perfect(block=1, site="attn_z"), perfect(site="resid_mid")):
        (fit,) = measure_fit(make_model(), sae, ROWS, tokenizer=tokenizer)
        assert fit.fvu == pytest.approx(0, abs=1e-9)
        assert fit.loss_with_sae == pytest.approx(fit.loss, rel=1e-5)
        assert fit.loss_with_zero != pytest.approx(fit.loss, rel=1e-3)
        assert fit.cosine == pytest.approx(1, rel=1e-5)
        assert fit.norm_ratio == pytest.approx(1, rel=1e-5)
        assert fit.l0 == pytest.approx(WIDTH, rel=0.01)  # each dimension is above or below 0
        assert fit.dead_features == 0


def test_sae_that_only_knows_the_mean_leaves_everything_unexplained(make_model, tokenizer):
    model = make_model()
    mean = counted_values(model, tokenizer).mean(dim=0)
    silent = sae_of(torch.zeros(WIDTH, 8), torch.zeros(8, WIDTH), mean)
    (fit,) = measure_fit(model, silent, ROWS, tokenizer=tokenizer)
    assert fit.fvu == pytest.approx(1, rel=1e-5)
    assert (fit.l0, fit.dead_features) == (0, 1)


def test_figures_are_those_of_the_formulas(make_model, tokenizer):
    model, sae = make_model(), random_sae()
    (fit,) = measure_fit(model, sae, ROWS, tokenizer=tokenizer)
    x = counted_values(model, tokenizer)
    made, acts = sae.reconstruct(x), sae.encode(x)
    variance = (x - x.mean(dim=0)).square().sum()
    assert fit.num_tokens == len(x)
    assert fit.fvu == pytest.approx(float((x - made).square().sum() / variance), rel=1e-4)
    assert fit.l0 == pytest.approx(float((acts != 0).sum(dim=1).float().mean()))
    assert fit.stated_l0 == 4
    assert fit.dead_features == pytest.approx(float((acts == 0).all(dim=0).float().mean()))
    assert fit.cosine == pytest.approx(float(torch.cosine_similarity(x, made).mean()), rel=1e-4)
    assert fit.norm_ratio == pytest.approx(float((made.norm(dim=1) / x.norm(dim=1)).mean()), rel=1e-4)
    assert fit.residual_norm == pytest.approx(float(x.norm(dim=1).median()), rel=1e-4)


def test_losses_are_those_of_a_model_with_the_counted_tokens_replaced(make_model, tokenizer):
    model, sae = make_model(), random_sae(block=1)
    (fit,) = measure_fit(model, sae, ROWS, tokenizer=tokenizer)

    def loss(replaced):
        total = num = 0
        for text in TEXTS:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad(), edit_sites(model, {(1, "resid_post"): lambda value: replaced(value) - value}):
                logits = model(ids).logits[0, 1:-1]  # position 0 is left as it is and predicts nothing that counts
            total += float(cross_entropy(logits, ids[0, 2:], reduction="sum"))
            num += ids.shape[1] - 2
        return total / num

    def behind_the_first(value, new):
        return torch.cat([value[:, :1], new[:, 1:]], dim=1)

    assert fit.loss == pytest.approx(loss(lambda value: value), rel=1e-5)
    assert fit.loss_with_sae == pytest.approx(loss(lambda v: behind_the_first(v, sae.reconstruct(v))), rel=1e-5)
    assert fit.loss_with_zero == pytest.approx(loss(lambda v: behind_the_first(v, torch.zeros_like(v))), rel=1e-5)
    mean = counted_values(model, tokenizer, block=1).mean(dim=0)
    assert fit.loss_with_mean == pytest.approx(loss(lambda v: behind_the_first(v, mean.expand_as(v))), rel=1e-5)


def test_loss_recovered_is_1_for_a_perfect_sae_and_0_for_one_as_bad_as_zeros(make_model, tokenizer):
    (fit,) = measure_fit(make_model(), perfect(), ROWS, tokenizer=tokenizer)
    assert dataclasses.replace(fit, loss=2, loss_with_sae=2, loss_with_zero=10).loss_recovered == 1
    assert dataclasses.replace(fit, loss=2, loss_with_sae=10, loss_with_zero=10).loss_recovered == 0
    assert dataclasses.replace(fit, loss=2, loss_with_sae=4, loss_with_zero=10).loss_recovered == 0.75
    assert dataclasses.replace(fit, loss=2, loss_with_sae=4, loss_with_mean=6).loss_recovered_from_mean == 0.5
    no_share = dataclasses.replace(fit, loss=2, loss_with_zero=2)  # zeros do not raise the loss
    assert math.isnan(no_share.loss_recovered)
    assert no_share.as_dict()["loss_recovered"] is None


def test_figures_do_not_depend_on_the_batches(make_model, tokenizer):
    alone, together = (
        measure_fit(make_model(), random_sae(), ROWS, tokenizer=tokenizer, text_options=TextOptions(batch_size=size))[
            0
        ]
        for size in (1, 5)
    )
    for name, value in together.as_dict().items():
        assert alone.as_dict()[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float | dict) else value)


def test_fvu_next_door_is_that_of_the_same_site_one_block_away(make_model, tokenizer):
    model, sae = make_model(num_blocks=3), random_sae(block=1)
    (fit,) = measure_fit(model, sae, ROWS, tokenizer=tokenizer)
    assert fit.fvu_next_door.keys() == {0, 2}
    (other,) = measure_fit(model, dataclasses.replace(sae, block=2), ROWS, tokenizer=tokenizer)
    assert fit.fvu_next_door[2] == pytest.approx(other.fvu)
    assert other.fvu_next_door == {1: pytest.approx(fit.fvu)}


def test_fvu_of_groups_adds_up_to_that_of_all(make_model, tokenizer):
    (fit,) = measure_fit(make_model(), random_sae(), ROWS, tokenizer=tokenizer)
    assert fit.fvu_by_group.keys() == {"en", "other"}
    assert min(fit.fvu_by_group.values()) < fit.fvu < max(fit.fvu_by_group.values())
    (without,) = measure_fit(make_model(), random_sae(), [{"text": text} for text in TEXTS], tokenizer=tokenizer)
    assert without.fvu_by_group == {}
    assert without.fvu == pytest.approx(fit.fvu)


def test_several_saes_are_measured_as_each_alone(make_model, tokenizer):
    saes = [random_sae(block=1), perfect(block=0), random_sae(block=1, site="mlp_out")]
    together = measure_fit(make_model(), saes, ROWS, tokenizer=tokenizer)
    assert [(fit.block, fit.site) for fit in together] == [(1, "resid_post"), (0, "resid_post"), (1, "mlp_out")]
    for sae, fit in zip(saes, together):
        (alone,) = measure_fit(make_model(), sae, ROWS, tokenizer=tokenizer)
        assert alone.fvu == pytest.approx(fit.fvu, abs=1e-12)
        assert alone.loss_with_sae == pytest.approx(fit.loss_with_sae)


def test_sae_that_normalises_tokens_is_measured_too(make_model, tokenizer):
    (fit,) = measure_fit(make_model(), perfect(input_norm="constant_norm"), ROWS, tokenizer=tokenizer)
    assert fit.fvu == pytest.approx(0, abs=1e-9)


def test_negative_activations_count_as_active(make_model, tokenizer):
    (fit,) = measure_fit(make_model(), random_sae(activation="abstopk"), ROWS, tokenizer=tokenizer)
    assert fit.l0 == 4


def test_draw_keeps_to_max_texts_and_is_the_same_for_a_seed(make_model, tokenizer):
    draws = [
        measure_fit(
            make_model(), perfect(), ROWS, tokenizer=tokenizer, text_options=TextOptions(max_texts=2), seed=seed
        )[0].num_tokens
        for seed in (0, 0, 1, 2, 3)
    ]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 1
    assert max(draws) < len(counted_values(make_model(), tokenizer))


def test_l0_in_the_name_of_a_gemma_scope_folder_is_what_the_files_say(make_model, tokenizer):
    sae = perfect(file="layer_0/width_64/average_l0_71/params.npz")
    assert measure_fit(make_model(), sae, ROWS, tokenizer=tokenizer)[0].stated_l0 == 71
    assert measure_fit(make_model(), perfect(), ROWS, tokenizer=tokenizer)[0].stated_l0 is None


def test_fit_is_json(make_model, tokenizer):
    (fit,) = measure_fit(make_model(), perfect(), ROWS, tokenizer=tokenizer)
    assert json.loads(json.dumps(fit.as_dict(), allow_nan=False))["fvu"] == fit.fvu


@pytest.mark.parametrize(
    ("saes", "options", "message"),
    [
        ([], {}, "There is no SAE"),
        ([perfect(), perfect()], {}, "one SAE for each block and site"),
        ([perfect(block=2)], {}, "the model has blocks 0 to 1"),
        ([perfect(width=16)], {}, "reads width 16, block 0 writes 32; was it trained on this model?"),
        ([random_sae(k=None)], {}, "do not say how many features are active"),
        ([dataclasses.replace(perfect(), W_dec=None)], {}, "directions=True"),
        ([dataclasses.replace(perfect(), features=tuple(range(64)))], {}, "Only 64 features were loaded"),
        ([perfect()], {"texts": []}, "There are no texts"),
        ([perfect()], {"texts": [{"text": "a"}, {"text": "ab"}]}, "No token counts"),
        ([perfect()], {"text_options": TextOptions(text_column="body")}, "no text in the column `body`"),
        ([perfect()], {"text_options": TextOptions(max_texts=0)}, "`max_texts` must be 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(make_model, tokenizer, saes, options, message):
    with pytest.raises(ValueError, match=message):
        measure_fit(make_model(), saes, options.pop("texts", ROWS), tokenizer=tokenizer, **options)


def test_hooks_are_gone_afterwards(make_model, tokenizer):
    model = make_model()
    measure_fit(model, random_sae(), ROWS, tokenizer=tokenizer)
    with record_sites(model, [(0, "resid_post")]) as values, torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    assert len(values[0, "resid_post"]) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
