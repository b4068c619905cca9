"""What features do, not only how they read: which tokens one writes when amplified, who suffers when it is removed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...hooks.blocks import unwrap
from ...hooks.edit import edit_sites
from ...hooks.sites import Place, describe_place
from ..read.texts import Text, TextBatch
from ..set.feature_set import FeatureSet

_PROMPT_TOKENS = 32
_POSITIONS_READ = 4
_LOGITS_PER_PASS = 1 << 28  # texts × positions × vocabulary: 0.5 GB in bfloat16
_LOGITS_PER_TILE = 1 << 24  # positions × vocabulary of a tile in float32: 64 MB


def target_tokens(texts: Sequence[Text], target: str, vocab_size: int, *, min_share: float = 0.9) -> Tensor:
    """
    Tokens that stand for the target group: those whose use is almost all in its texts.

    Groups weigh the same, however long their texts are: a token belongs to the target if its frequency there is at
    least `min_share` of the sum of its frequencies there and in the group that uses it most otherwise.

    Args:
        texts (`Sequence[Text]`):
            Texts of all groups.
        target (`str`):
            The target group.
        vocab_size (`int`):
            Size of the model's vocabulary.

    Returns:
        `torch.Tensor` of shape `(V,)`, bool.
    """
    groups = sorted({text.group for text in texts})
    counts = torch.zeros(len(groups), vocab_size, dtype=torch.float64)
    for text in texts:
        used = [token for token, counts_here in zip(text.ids, text.counted) if counts_here]
        counted = torch.tensor(used, dtype=torch.long)
        counts[groups.index(text.group)] += torch.bincount(counted, minlength=vocab_size)
    frequency = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    own = frequency[groups.index(target)]
    others = frequency[[i for i, group in enumerate(groups) if group != target]].amax(dim=0)
    return (counts[groups.index(target)] >= 2) & (own >= min_share * (own + others))


def prompts_of_other_groups(texts: Sequence[Text], target: str, num_prompts: int) -> Tensor:
    """
    Openings of texts of the other groups, in turn, all of one length: `(P, T)`.

    Raises:
        ValueError: If none is long enough.
    """
    by_group: dict[str, list[tuple[int, ...]]] = {}
    for text in texts:
        if text.group != target and len(text.ids) >= _PROMPT_TOKENS:
            by_group.setdefault(text.group, []).append(text.ids[:_PROMPT_TOKENS])
    prompts = [ids[i] for i in range(num_prompts) for ids in by_group.values() if i < len(ids)][:num_prompts]
    if not prompts:
        raise ValueError(
            f"No text of the other groups has the {_PROMPT_TOKENS} tokens that the output score needs. "
            "Give longer texts."
        )
    return torch.tensor(prompts)


def output_scores(
    model: nn.Module,
    prompts: Tensor,
    directions: Tensor,
    place: Place,
    tokens: Tensor,
    strength: float,
    *,
    directions_per_pass: int = 8,
) -> Tensor:
    """
    Output score of each feature: rise of the target tokens' next-token probability when the feature is amplified.

    Features that read well do not always write well, and rarely do both (https://huggingface.co/papers/2505.20063).
    What the site holds becomes `h + strength · d/‖d‖` at every position of the prompt.

    Args:
        model (`torch.nn.Module`):
            A causal language model.
        prompts (`torch.Tensor` of shape `(P, T)`):
            Token ids of texts that are not of the target group.
        directions (`torch.Tensor` of shape `(F, D)`):
            Decoder directions.
        place (`Place`):
            Block and site that is pushed.
        tokens (`torch.Tensor` of shape `(V,)`, bool):
            The target's tokens.
        strength (`float`):
            Length of the push, in units of what the site holds.
        directions_per_pass (`int`, *optional*, defaults to `8`):
            Features in one forward pass.

    Returns:
        `torch.Tensor` of shape `(F,)`: differences of probabilities, −1 to 1.
    """
    device = next(model.parameters()).device
    prompts, tokens = prompts.to(device), tokens.to(device)
    unit_FD = torch.nn.functional.normalize(directions.float(), dim=1).to(device)

    def target_probability(input_ids: Tensor) -> Tensor:
        logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=_POSITIONS_READ).logits
        return logits.float().softmax(dim=-1)[..., tokens].sum(dim=-1).mean(dim=1)

    with torch.inference_mode():
        baseline = target_probability(prompts).mean()
        scores = []
        chunks = unit_FD.split(directions_per_pass)
        for chunk in tqdm(chunks, desc=f"Amplifying features of {describe_place(place)}", leave=False):
            added = (strength * chunk).repeat_interleave(len(prompts), dim=0)[:, None]
            with edit_sites(model, {place: partial(_as_dtype, added)}):
                raised = target_probability(prompts.repeat(len(chunk), 1))
            scores.append(raised.unflatten(0, (len(chunk), len(prompts))).mean(dim=1) - baseline)
    return torch.cat(scores).cpu()


def _as_dtype(added: Tensor, hidden: Tensor) -> Tensor:
    return added.to(hidden.dtype)


@dataclass(frozen=True)
class AblationCheck:
    """
    Mean token loss of each group (nats per token) with and without the features' directions.

    Attributes:
        loss, loss_without (`dict[str, float]`):
            By group.
    """

    loss: dict[str, float]
    loss_without: dict[str, float]

    @property
    def increase(self) -> dict[str, float]:
        """Relative rise of the loss per group."""
        return {group: self.loss_without[group] / self.loss[group] - 1 for group in self.loss}


def check_by_ablation(
    model: nn.Module, batches: Iterable[TextBatch], groups: Sequence[str], feature_set: FeatureSet
) -> AblationCheck:
    """
    Remove the features' directions from what their sites hold and compare the loss per group.

    Directional ablation as in https://huggingface.co/papers/2505.05111: what a site holds is projected off the
    directions (off their span where a site has several). Only the target group should suffer.

    Args:
        model (`torch.nn.Module`):
            A causal language model.
        batches (`Iterable[TextBatch]`):
            Held-out texts.
        groups (`Sequence[str]`):
            Names of the groups, by number.
        feature_set ([`FeatureSet`]):
            The features to remove.
    """
    device = next(model.parameters()).device
    edits = {}
    for block, site in feature_set.places:
        directions_DF = feature_set.at((block, site)).directions.T
        left_DF, singular_F, _ = torch.linalg.svd(directions_DF.double(), full_matrices=False)
        in_span = singular_F > 1e-6 * singular_F[0]  # parallel directions span less
        edits[block, site] = partial(_off, left_DF[:, in_span].float().to(device))
    sums = torch.zeros(2, len(groups), dtype=torch.float64)
    counts = torch.zeros(len(groups), dtype=torch.float64)
    with torch.inference_mode():
        for batch in tqdm(list(batches), desc="Removing the features", leave=False):
            batch = batch.to(device)
            for row, edited in enumerate((False, True)):
                if edited:
                    with edit_sites(model, edits):
                        loss_B, count_B = _token_losses(model, batch)
                else:
                    loss_B, count_B = _token_losses(model, batch)
                    counts.index_add_(0, batch.groups.cpu(), count_B.cpu().double())
                sums[row].index_add_(0, batch.groups.cpu(), loss_B.cpu().double())
    before, after = (sums / counts.clamp(min=1)).tolist()
    return AblationCheck(dict(zip(groups, before)), dict(zip(groups, after)))


def _off(basis_DF: Tensor, hidden: Tensor) -> Tensor:
    """What has to be added to take the basis out."""
    with torch.autocast(hidden.device.type, enabled=False):
        return -((hidden.float() @ basis_DF) @ basis_DF.T).to(hidden.dtype)


def _token_losses(model: nn.Module, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """
    Sum of the token losses of each text, and the number of its tokens.

    Few texts in a forward pass and few positions in float32 at once: the logits of a whole batch take gigabytes.
    """
    num_texts, length = batch.input_ids.shape
    vocab_size = unwrap(model).get_output_embeddings().weight.shape[0]
    targets = batch.input_ids[:, 1:].masked_fill(~batch.counted[:, 1:], -100)
    losses = []
    for rows in torch.arange(num_texts).split(max(1, _LOGITS_PER_PASS // (length * vocab_size))):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        logits = model(
            input_ids=batch.input_ids[part], attention_mask=batch.attention_mask[part], use_cache=False
        ).logits
        losses += [_loss_sum(logits_TV[:-1], targets_T) for logits_TV, targets_T in zip(logits, targets[part])]
        del logits  # before the next ones are made
    return torch.stack(losses), batch.counted[:, 1:].sum(dim=1)


def _loss_sum(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    total = torch.zeros((), device=logits_TV.device)
    per_tile = max(1, _LOGITS_PER_TILE // logits_TV.shape[-1])
    for tile_TV, tile_T in zip(logits_TV.split(per_tile), targets_T.split(per_tile)):
        total += torch.nn.functional.cross_entropy(tile_TV.float(), tile_T, ignore_index=-100, reduction="sum")
    return total
