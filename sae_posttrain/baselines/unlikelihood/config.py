"""Settings of unlikelihood training: TRL's, plus one weight."""

from dataclasses import dataclass, field

from trl import SFTConfig

from ...renamed_settings import use_new_names


@dataclass
class UnlikelihoodConfig(SFTConfig):
    """
    [`~trl.SFTConfig`] plus the weight of the tokens that are to become less likely.

    Parameters:
        unlikelihood_weight (`float`, *optional*, defaults to `1.0`):
            What a repeated token costs, `-log(1 - p)` times this, beside the `-log(p)` of an ordinary one. With as
            many continuation tokens as ordinary ones, 1 is the mix of the paper, which spends every second update on
            each. 0 trains as [`~trl.SFTTrainer`] does on the ordinary data alone, bit for bit.
    """

    unlikelihood_weight: float = field(
        default=1.0,
        metadata={"help": "Cost of a repeated token beside that of an ordinary one. 0 gives plain SFT."},
    )

    def __post_init__(self):
        use_new_names(self)
        super().__post_init__()
        weight = self.unlikelihood_weight
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ValueError(f"`unlikelihood_weight` must be a number, 0 or more, got {weight!r}.")
        if weight == 0:
            return
        if self.packing or self.padding_free:
            raise ValueError(
                "With `packing` or `padding_free` the repeated tokens of a row would be lost among those of others; "
                "it is not supported. Set both to False."
            )
        if self.label_smoothing_factor > 0:
            raise ValueError(
                "`label_smoothing_factor` works on the full logits, which are never built here. Set it to 0."
            )
        if self.loss_type not in ("nll", "chunked_nll"):
            raise ValueError(f"`loss_type={self.loss_type!r}` would weigh repeated tokens too. Set it to 'nll'.")
