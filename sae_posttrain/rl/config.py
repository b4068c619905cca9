"""Settings of steered GRPO: TRL's, plus which rollouts are steered, how hard, and how they count."""

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from ..renamed_settings import use_new_names


@dataclass
class SteeredGRPOConfig(GRPOConfig):
    """
    [`~trl.GRPOConfig`] plus rollouts that are steered into a fault, as the rare negative augmentation of Qwen-Scope
    (https://huggingface.co/papers/2605.11887, section 8).

    The base is DAPO (https://huggingface.co/papers/2503.14476) without dynamic sampling: `epsilon_high` is 0.28 here,
    and `loss_type="dapo"` and `beta=0` are TRL's defaults already. The report says nothing about the weight of
    off-policy rows and about rows that miss the fault; the defaults leave both as they are.

    Parameters:
        > Parameters that control the features

        features (`str`, *optional*):
            Feature set to steer along: a file, a folder or a Hub repository. Pass a [`FeatureSet`] object to the
            trainer instead.
        allow_base_model (`str`, *optional*):
            Name of a model, other than the one the features were found on, that may be trained with them.

        > Parameters that control the steered rollouts

        num_steered (`int`, *optional*, defaults to `1`):
            Number of steered rollouts of each prompt: the last ones. 0 trains exactly like [`~trl.GRPOTrainer`].
        steer_strength (`float`, *optional*):
            Length of the push, in median residual norms of the site. Defaults to the one that `calibrate` stored in
            the feature set.
        steer_positions (`str`, *optional*, defaults to `"generated"`):
            `"generated"`: from the last position of the prompt on, which predicts the first generated token.
            `"all"`: the prompt too.
        steer_temperature (`float`, *optional*):
            Temperature that steered rollouts are sampled at; 0 is greedy. Defaults to the one that
            `calibrate --temperatures` stored in the feature set, else to `temperature`. Log-probabilities stay those
            of the policy at `temperature`.
        steer_top_p (`float`, *optional*), steer_top_k (`int`, *optional*):
            Nucleus and number of tokens that steered rollouts are sampled from. Default to `top_p` and `top_k`.

        > Parameters that control the cold rollouts

        num_cold (`int`, *optional*, defaults to `0`):
            Number of cold rollouts of each prompt, in front of the steered ones: sampled at `cold_temperature` and not
            steered. They are negatives too: what is said of steered rollouts below holds for them, except for the
            strength. With `num_steered=0` no features are needed.
        cold_temperature (`float`, *optional*, defaults to `0.0`):
            Temperature of cold rollouts, with `top_p` and `top_k` of the policy. 0 is greedy: the model's own most
            likely answer, of which there is only one.

        > Parameters that control rollouts that miss the fault

        on_miss (`str`, *optional*, defaults to `"keep"`):
            What happens to a steered rollout that does not show the fault. `"keep"` trains on it as on any other;
            `"drop"` takes it out of the loss and out of its prompt's statistics; `"resample"` generates it again,
            steered, up to `max_resamples` times, and then keeps it.
        max_resamples (`int`, *optional*, defaults to `2`):
            Largest number of further attempts for `on_miss="resample"`.
        target_hit_rate (`float`, *optional*):
            Share of the steered rollouts that should show the fault. The strength then follows the policy as it
            changes. By default the strength is fixed.
        strength_gain (`float`, *optional*, defaults to `0.2`):
            How fast the strength changes: change of its logarithm per generation, per unit of missing hit rate.
        max_steer_strength (`float`, *optional*, defaults to `8.0`):
            Largest strength that the controller may set, in residual norms.

        > Parameters that control how steered rollouts count

        steered_baseline (`str`, *optional*, defaults to `"all"`):
            Rollouts whose mean reward is the prompt's baseline: `"all"`, or the `"plain"` ones only, so that a bad
            reward of the steered rollout does not raise the advantage of the others. The scale is the standard
            deviation over all rollouts of the prompt in both cases: over the plain ones alone it is often 0.
        cap_steered_advantage (`bool`, *optional*, defaults to `False`):
            Cap the advantage of steered rollouts at 0: they are never reinforced.
        steered_weight (`float`, *optional*, defaults to `1.0`):
            Factor on the advantage of steered rollouts. The loss is still divided by all their tokens.
        steered_kl (`bool`, *optional*, defaults to `True`):
            Whether the penalty of `beta` counts steered and cold rollouts. TRL estimates the KL divergence by
            `exp(log π_ref - log π) - (log π_ref - log π) - 1` over tokens that the policy sampled
            (http://joschu.net/blog/kl-approx.html). On tokens that it did not sample this estimates nothing, and it
            grows exponentially while the policy unlearns them: it holds what the reward takes away. With `False` these
            rollouts leave the penalty, and the `kl` that TRL logs counts them as 0.
        off_policy_weight (`str`, *optional*, defaults to `"none"`):
            Weight of a steered rollout's tokens, which the policy did not sample. `"none"`: 1, as published.
            `"truncated"`: `min(π_old / μ, off_policy_clip)` per token. μ is the probability that the token was drawn
            with: under steering, at the rollout's own temperature and truncation (1 if it is greedy). It is recorded
            while the rollout is sampled; vLLM tells it itself.
            `"floor"`: tokens whose `π_old` is below `off_policy_floor` are not trained on.
        off_policy_clip (`float`, *optional*, defaults to `1.0`):
            Largest weight for `"truncated"`.
        off_policy_floor (`float`, *optional*, defaults to `1e-4`):
            Smallest probability of a token for `"floor"`.
        loop_cut (`int`, *optional*):
            Number of periods of a steered rollout's endless loop that stay in the loss, so that loop tokens do not
            dominate the mean over tokens. Rewards still see the whole rollout. By default all periods stay.

        > Parameters that control dynamic sampling

        dynamic_sampling (`str`, *optional*, defaults to `"none"`):
            What replaces a prompt whose plain rollouts all score the same and so teach nothing. `"fresh"`: further
            prompts, as in DAPO. `"same"`: further rollouts of the same prompt. `"none"`: nothing, as in
            [`~trl.GRPOTrainer`]. It works with `num_steered=0` too.
        dynamic_sampling_max_rounds (`int`, *optional*, defaults to `10`):
            Largest number of rounds of generation for one batch, the first one included. Prompts of the last round
            without spread fill the places that are still open; `dynamic/shortfall` logs their share.
        dynamic_sampling_reward (`str`, *optional*):
            Name of the reward whose spread counts, as it is logged. DAPO looks at right and wrong only, not at the
            punishment for length. By default the weighted sum of all rewards counts.

        > Parameters that control the check of the rewards

        blind_reward_patience (`int`, *optional*, defaults to `32`):
            Number of prompts in a row after which training stops because the rewards do not see the fault. A prompt
            counts if a steered rollout shows the fault, a plain one does not, and no faulty rollout scores below the
            plain mean. 0: training never stops.
    """

    epsilon_high: float | None = field(
        default=0.28,
        metadata={"help": "Upper bound of the clipping, DAPO's by default. TRL's default is that of `epsilon`."},
    )
    features: str | None = field(
        default=None, metadata={"help": "Feature set to steer along: a file, a folder or a Hub repository."}
    )
    allow_base_model: str | None = field(
        default=None,
        metadata={
            "help": "Name of a model, other than the one the features were found on, that may be trained with them."
        },
    )
    num_steered: int = field(
        default=1, metadata={"help": "Steered rollouts of each prompt. 0 trains exactly like GRPOTrainer."}
    )
    steer_strength: float | None = field(
        default=None,
        metadata={"help": "Length of the push in residual norms. Default: the one stored by `calibrate`."},
    )
    steer_positions: str = field(
        default="generated",
        metadata={
            "help": "Positions that are pushed: from the last of the prompt on, or the prompt too.",
            "choices": ["generated", "all"],
        },
    )
    steer_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Temperature that steered rollouts are sampled at; 0 is greedy. Default: the one stored by "
            "`calibrate --temperatures`, else the policy's."
        },
    )
    steer_top_p: float | None = field(
        default=None, metadata={"help": "Nucleus of the steered rollouts. Default: the policy's."}
    )
    steer_top_k: int | None = field(
        default=None, metadata={"help": "Tokens that steered rollouts choose from. Default: the policy's."}
    )
    num_cold: int = field(
        default=0,
        metadata={"help": "Rollouts of each prompt that are sampled at `cold_temperature`, without steering."},
    )
    cold_temperature: float = field(
        default=0.0, metadata={"help": "Temperature of the cold rollouts; 0 is greedy, and takes `num_cold=1`."}
    )
    on_miss: str = field(
        default="keep",
        metadata={
            "help": "What becomes of a steered rollout that does not show the fault.",
            "choices": ["keep", "drop", "resample"],
        },
    )
    max_resamples: int = field(default=2, metadata={"help": "Further attempts for on_miss='resample'."})
    target_hit_rate: float | None = field(
        default=None,
        metadata={
            "help": "Share of steered rollouts that should show the fault; the strength follows it. Default: fixed."
        },
    )
    strength_gain: float = field(
        default=0.2,
        metadata={"help": "Change of the strength's logarithm per generation, per unit of missing hit rate."},
    )
    max_steer_strength: float = field(
        default=8.0, metadata={"help": "Largest strength the controller may set, in residual norms."}
    )
    steered_baseline: str = field(
        default="all",
        metadata={
            "help": "Rollouts whose mean reward is the prompt's baseline: all, or the plain ones only.",
            "choices": ["all", "plain"],
        },
    )
    cap_steered_advantage: bool = field(
        default=False, metadata={"help": "Cap the advantage of steered rollouts at 0: they are never reinforced."}
    )
    steered_weight: float = field(default=1.0, metadata={"help": "Factor on the advantage of steered rollouts."})
    steered_kl: bool = field(
        default=True, metadata={"help": "Whether the KL penalty of `beta` counts steered and cold rollouts."}
    )
    off_policy_weight: str = field(
        default="none",
        metadata={
            "help": "Weight of tokens the policy did not sample: none, as published; truncated, the policy's "
            "probability divided by that under steering, clipped; or floor, 0 below a smallest probability.",
            "choices": ["none", "truncated", "floor"],
        },
    )
    off_policy_clip: float = field(default=1.0, metadata={"help": "Largest weight for 'truncated'."})
    off_policy_floor: float = field(default=1e-4, metadata={"help": "Smallest probability of a token for 'floor'."})
    loop_cut: int | None = field(
        default=None,
        metadata={"help": "Periods of a steered rollout's endless loop that stay in the loss. Default: all."},
    )
    dynamic_sampling: str = field(
        default="none",
        metadata={
            "help": "What replaces a prompt whose plain rollouts all score the same: nothing; fresh prompts, as in "
            "DAPO; or further rollouts of the same prompt.",
            "choices": ["none", "fresh", "same"],
        },
    )
    dynamic_sampling_max_rounds: int = field(
        default=10, metadata={"help": "Rounds of generation for one batch, the first one included."}
    )
    dynamic_sampling_reward: str | None = field(
        default=None,
        metadata={"help": "Name of the reward whose spread counts. Default: the weighted sum of all."},
    )
    blind_reward_patience: int = field(
        default=32,
        metadata={
            "help": "Number of prompts in a row whose faulty rollout does not score below the plain ones, after which "
            "training stops. 0: never."
        },
    )

    def __post_init__(self):
        use_new_names(self)
        super().__post_init__()
        _require_integer("num_steered", self.num_steered, 0)
        _require_integer("num_cold", self.num_cold, 0)
        _require_integer("max_resamples", self.max_resamples, 1)
        _require_integer("blind_reward_patience", self.blind_reward_patience, 0)
        if self.loop_cut is not None:
            _require_integer("loop_cut", self.loop_cut, 1)
        if self.steer_strength is not None:
            _require_positive("steer_strength", self.steer_strength)
        for name in ("strength_gain", "max_steer_strength", "steered_weight", "off_policy_clip"):
            _require_positive(name, getattr(self, name))
        _require_share("off_policy_floor", self.off_policy_floor)
        if self.target_hit_rate is not None:
            _require_share("target_hit_rate", self.target_hit_rate)
        _require_choice("steer_positions", self.steer_positions, ("generated", "all"))
        _require_choice("on_miss", self.on_miss, ("keep", "drop", "resample"))
        _require_choice("steered_baseline", self.steered_baseline, ("all", "plain"))
        _require_choice("off_policy_weight", self.off_policy_weight, ("none", "truncated", "floor"))
        if self.steer_temperature is not None:
            _require_not_negative("steer_temperature", self.steer_temperature)
        _require_not_negative("cold_temperature", self.cold_temperature)
        if self.steer_top_p is not None and self.steer_top_p != 1:
            _require_share("steer_top_p", self.steer_top_p)
        if self.steer_top_k is not None:
            _require_integer("steer_top_k", self.steer_top_k, 0)
        assert self.num_generations is not None
        if self.num_provoked >= self.num_generations:
            cold = f" and `num_cold` {self.num_cold}" if self.num_cold else ""
            raise ValueError(
                f"`num_steered` is {self.num_steered}{cold} of `num_generations={self.num_generations}`: no plain "
                f"rollout is left to compare with. Set `num_steered` {'or `num_cold` ' if cold else ''}lower."
            )
        own = [name for name in ("steer_temperature", "steer_top_p", "steer_top_k") if getattr(self, name) is not None]
        if own and not self.num_steered:
            raise ValueError(f"`{own[0]}` does nothing with `num_steered=0`. Leave it out.")
        if self.num_cold > 1 and self.cold_temperature == 0:
            raise ValueError(
                f"`num_cold={self.num_cold}` at `cold_temperature=0` are the same greedy answer again and again. Set "
                "`num_cold=1`, or `cold_temperature` above 0."
            )
        if self.num_steered and self.steer_temperature == 0:
            require_one_greedy_steered(self.num_steered)
            refuse_resampling_greedy(self.on_miss, "steer_temperature")
        if self.num_cold and self.cold_temperature == 0:
            refuse_resampling_greedy(self.on_miss, "cold_temperature")
        _require_choice("dynamic_sampling", self.dynamic_sampling, ("none", "fresh", "same"))
        _require_integer("dynamic_sampling_max_rounds", self.dynamic_sampling_max_rounds, 2)
        if self.dynamic_sampling == "none" and self.dynamic_sampling_reward is not None:
            raise ValueError(
                f"`dynamic_sampling_reward={self.dynamic_sampling_reward!r}` does nothing without dynamic sampling. "
                "Set `dynamic_sampling` to 'fresh' or 'same'."
            )
        if self.dynamic_sampling != "none" and self.num_generations - self.num_provoked < 2:
            cold = f" and `num_cold={self.num_cold}`" if self.num_cold else ""
            raise ValueError(
                f"`num_steered={self.num_steered}`{cold} of `num_generations={self.num_generations}` leaves a single "
                "plain rollout, and dynamic sampling looks for a difference between two. Set `num_generations` higher."
            )
        regroups = self.num_provoked > 0 and (self.steered_baseline == "plain" or self.on_miss == "drop")
        if regroups and self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                "`steered_baseline='plain'` and `on_miss='drop'` need "
                f"`multi_objective_aggregation='sum_then_normalize'`, got {self.multi_objective_aggregation!r}."
            )

    @property
    def num_provoked(self) -> int:
        """Rollouts of each prompt that the policy's own sampling does not make: steered and cold ones."""
        return self.num_steered + self.num_cold


def require_one_greedy_steered(num_steered: int) -> None:
    """Raise a `ValueError` if several rollouts of a prompt would be the same greedy answer."""
    if num_steered > 1:
        raise ValueError(
            f"`num_steered={num_steered}` at `steer_temperature=0` are the same greedy answer again and again. Set "
            "`num_steered=1`, or `steer_temperature` above 0."
        )


def refuse_resampling_greedy(on_miss: str, temperature: str) -> None:
    """Raise a `ValueError` if greedy rollouts, whose setting is named `temperature`, would be sampled again."""
    if on_miss == "resample":
        raise ValueError(
            f"`on_miss='resample'` with `{temperature}=0` would generate the same greedy answer again. Set "
            f"`{temperature}` above 0, or `on_miss` to 'keep' or 'drop'."
        )


def _require_integer(name: str, value: Any, smallest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ValueError(f"`{name}` must be a whole number, {smallest} or more, got {value!r}.")


def _require_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be a number above 0, got {value!r}.")


def _require_not_negative(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be a number, 0 or more, got {value!r}.")


def _require_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"`{name}` must lie between 0 and 1, got {value!r}.")


def _require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
