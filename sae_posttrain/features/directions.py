"""Directions that come from no SAE: random ones and differences of means, the controls that a feature has to beat."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..hooks.record import record_blocks
from ..measure.generate import eval_mode
from .feature_set import FeatureSet
from .loading import model_name
from .texts import Text, batches


def random_directions(feature_set: FeatureSet, seed: int) -> FeatureSet:
    """
    Isotropic random unit directions in place of a set's own, at the same blocks, with the same residual norms.

    Where a block has several features, the whole bundle is turned at random, so that the angles between them, and
    with these the length of the summed push at every strength, stay as they are.

    Args:
        feature_set ([`FeatureSet`]):
            The features to control for.
        seed (`int`):
            Draws the directions.

    Returns:
        [`FeatureSet`]: as many directions, in the same order.

    Raises:
        ValueError: If a direction of the set is zero.
    """
    generator = torch.Generator().manual_seed(seed)
    turned = torch.zeros(len(feature_set), feature_set.d_model, dtype=torch.float64)
    for block in sorted(set(feature_set.blocks)):
        rows = [i for i, other in enumerate(feature_set.blocks) if other == block]
        own_DF = feature_set.directions[rows].double().T
        lengths_F = own_DF.norm(dim=0)
        if bool((lengths_F == 0).any()):
            raise ValueError(f"A direction of block {block} is zero; it has no random counterpart.")
        _, angles_FF = torch.linalg.qr(own_DF / lengths_F)
        drawn_DF = torch.randn(own_DF.shape, generator=generator, dtype=torch.float64)
        basis_DF, upper_FF = torch.linalg.qr(drawn_DF)
        basis_DF = basis_DF * upper_FF.diagonal().sign()  # without it QR prefers some orientations
        turned[rows] = (basis_DF @ angles_FF).T
    return FeatureSet.from_directions(
        turned.float(),
        blocks=feature_set.blocks,
        names=[f"random{seed}.{block}.{i}" for i, block in enumerate(feature_set.blocks)],
        residual_norms=feature_set.residual_norms,
        base_model=feature_set.base_model,
    )


def difference_of_means(
    model: nn.Module,
    positives: Sequence[Text],
    negatives: Sequence[Text],
    *,
    blocks: Sequence[int],
    batch_size: int = 16,
) -> FeatureSet:
    """
    One direction a block: mean residual over the tokens of one kind less that over those of another.

    For loops against normal text: `collect_samples` gathers both, and
    `difference_of_means(model, samples.loop_texts(skip_first_round=True), samples.normal_texts(), blocks=[4])`
    compares the tokens of a loop from its second time round on with those of normal answers.

    Args:
        model (`torch.nn.Module`):
            A causal language model.
        positives, negatives (`Sequence[Text]`):
            Token ids with a mask each: the tokens that count.
        blocks (`Sequence[int]`):
            Decoder blocks, from 0.
        batch_size (`int`, *optional*, defaults to `16`):
            Texts in one forward pass.

    Returns:
        [`FeatureSet`]: the directions, of the length of the difference, with the median residual norm of the
        negatives.

    Raises:
        ValueError: If no token counts on one side, or the means are equal.
    """
    means: list[dict[int, Tensor]] = []
    norms: dict[int, float] = {}
    with eval_mode(model):
        for texts, kind in ((positives, "positives"), (negatives, "negatives")):
            if not any(any(text.counted) for text in texts):
                raise ValueError(f"No token of the {kind} counts; there is no mean to compare.")
            mean, norms = _mean_residuals(model, texts, blocks, batch_size)
            means.append(mean)
    difference = torch.stack([means[0][block] - means[1][block] for block in blocks]).float()
    for block, direction in zip(blocks, difference):
        if not bool(direction.any()):
            raise ValueError(f"The means at block {block} are equal: positives and negatives are the same tokens.")
    return FeatureSet.from_directions(
        difference,
        blocks=blocks,
        names=[f"difference_of_means.{block}" for block in blocks],
        residual_norms=[norms[block] for block in blocks],
        base_model=model_name(model),
    )


def _mean_residuals(
    model: nn.Module, texts: Sequence[Text], blocks: Sequence[int], batch_size: int
) -> tuple[dict[int, Tensor], dict[int, float]]:
    """Mean residual `(D,)` over the counted tokens, and the median of their norms, by block."""
    device = next(model.parameters()).device
    sums: dict[int, Tensor] = {}
    norms: dict[int, list[Tensor]] = {block: [] for block in blocks}
    same_group = [Text("", text.ids, text.counted) for text in texts]
    with torch.inference_mode():
        for batch in batches(same_group, [""], batch_size, pad_token_id=0):
            batch = batch.to(device)
            with record_blocks(model, blocks) as outputs:
                model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, logits_to_keep=1
                )
            for block in blocks:
                residual_ND = outputs[block][0][batch.counted].float()
                sums[block] = sums.get(block, 0) + residual_ND.double().sum(dim=0).cpu()
                norms[block].append(residual_ND.norm(dim=1).cpu())
    medians = {block: torch.cat(parts) for block, parts in norms.items()}
    return (
        {block: total / len(medians[block]) for block, total in sums.items()},
        {block: float(values.median()) for block, values in medians.items()},
    )
