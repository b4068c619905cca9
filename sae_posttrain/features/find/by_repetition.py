"""Find the features that stand for endless repetition: by how they rise in loops, and by what they do to them."""

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...eval_mode import eval_mode
from ...hooks.sites import Place, describe_place, place_name
from ...measure.answers.positions import check_length
from ...measure.faults.loops import MIN_TOKENS
from ...saes.frozen import FrozenSAE
from ...serving.pushes import pushed_block
from ..controls.random_directions import random_directions
from ..read.loading import load_model_and_tokenizer, load_saes, place_of, require_fit, require_one_width
from ..read.statistics import GroupSums, collect_statistics
from ..read.texts import Text, batches, check_prompts
from ..set.feature_set import FeatureSet
from ..set.model_identity import found_on
from .answers import Prompts, Question, Sampling, describe_questions, name_unused_settings, read_questions
from .engine_answers import EngineAnswers, answering, require_engine
from .loop_scores import LoopRates, loop_rates, mean_increase, ranking
from .loop_texts import MIN_TEXTS, LoopSamples, benign_texts, collect_samples

logger = logging.getLogger(__name__)

RANKINGS = ("causal", "increase")
GROUPS = ("benign", "loop", "normal")

BENIGN_SHARE = 0.5
"""Share of its increase on loops above which a feature's increase on benign repetition is flagged."""


def find_repetition_features(
    model: nn.Module | str,
    sae: str | os.PathLike | FrozenSAE | Sequence[str | os.PathLike | FrozenSAE],
    *,
    prompts: Prompts | None = None,
    loops: str | os.PathLike | Iterable[Mapping[str, Any] | str | Sequence[int]] | None = None,
    blocks: Sequence[int] | None = None,
    site: str | None = None,
    num_features: int = 2,
    rank_by: str = "causal",
    num_candidates: int | None = None,
    num_loops: int = 50,
    num_prompts: int = 16,
    strength: float = 1.5,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    normal_temperature: float = 0.7,
    tokenizer: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    k: int | None = None,
    format: str | None = None,
    revision: str | None = None,
    engine: str = "transformers",
    engine_kwargs: Mapping[str, Any] | None = None,
) -> FeatureSet:
    """
    Find the features of one or more blocks that stand for endless repetition.

    First half, as Qwen-Scope (https://huggingface.co/papers/2605.11887, section 8.1): in loops, each repeated token's
    activation at its last occurrence minus that at its first; mean over tokens, then over loops. Second half: the best
    candidates are pushed up on normal prompts and down on looping ones, and ranked by what that does to the rate of
    endless answers: `causal = (rate pushed up − rate) on normal prompts + (rate − rate pushed down) on looping ones`,
    −1 to 2; of equal ones, the same sum of mean loop shares decides. A random direction at each SAE's site is pushed
    along beside them (`notes["random"]`).

    Benign repetition (a copied question, a list, a refrain) is built from the normal answers; features that rise there
    half as much as in loops or more are named in `notes["fires_on_benign"]`: to hold those down would be felt.

    Args:
        model (`torch.nn.Module` or `str`):
            A causal language model, or its path or Hub id.
        sae (`str`, `os.PathLike`, [`FrozenSAE`] or a sequence of them):
            As in [`find_features`].
        prompts (`str`, `os.PathLike` or iterable, *optional*):
            JSON or JSONL file, rows with `prompt` or `messages`, texts, or lists of token ids. Needed unless `loops`
            are given and `rank_by` is `"increase"`.
        loops (`str`, `os.PathLike` or iterable, *optional*):
            Texts that loop: rows with `text`, or `prompt` and `completion`, or `messages`; texts; or lists of token
            ids. By default the loops that the model falls into itself when it answers the prompts.
        blocks (`Sequence[int]`, *optional*):
            Decoder blocks, from 0. Needed unless loaded SAEs are given.
        site (`str`, *optional*):
            As in [`find_features`].
        num_features (`int`, *optional*, defaults to `2`):
            Features per SAE.
        rank_by (`str`, *optional*, defaults to `"causal"`):
            What decides among the candidates: `"causal"`, or `"increase"`, which generates nothing further.
        num_candidates (`int`, *optional*):
            Features per SAE, by increase, that are pushed. Defaults to 16, or `num_features` if that is more.
        num_loops (`int`, *optional*, defaults to `50`):
            Loops to look for, and normal answers beside them.
        num_prompts (`int`, *optional*, defaults to `16`):
            Normal prompts, and looping ones, on which each candidate is pushed.
        strength (`float`, *optional*, defaults to `1.5`):
            How far, in median residual norms of normal text.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest answer, in tokens. A loop is 64 or more, so 64 is the least where loops are generated or counted:
            always, unless `loops` are given and `rank_by` is `"increase"`.
        temperature (`float`, *optional*, defaults to `0.0`):
            Temperature of the answers in which loops are looked for. Greedy answers loop most.
        normal_temperature (`float`, *optional*, defaults to `0.7`):
            Temperature of the normal answers, and of those pushed up. Choose it so that loops are rare, as in the
            later training.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The model's, loaded from its folder if left out.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the chat template, e.g. `{"enable_thinking": False}`. Prompts that are text go to the
            model as they are, messages through the template, as in TRL; so do `loops`.
        batch_size (`int`, *optional*, defaults to `32`):
            Texts in one forward pass, and answers generated at once.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order of the prompts, and of the sampling.
        k, format, revision (*optional*):
            As in [`load_sae`].
        engine (`"transformers"` or `"vllm"`, *optional*, defaults to `"transformers"`):
            What samples the answers. With vLLM the model is given by its folder or id, and is loaded twice: the
            activations are
            read with transformers. A large `batch_size` then pays.
        engine_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of `vllm.LLM`. On a GPU the engine takes 0.6 of the memory unless
            `{"gpu_memory_utilization": …}` says otherwise.

    Returns:
        [`FeatureSet`]: the features, best first within each SAE, for the target group `"loop"`, with mean and
        standard deviation of the pre-activation over the tokens of `"benign"` repetition, of loops (from their onset
        on) and of `"normal"` answers; the norms at the sites are those of normal answers.

    Raises:
        ImportError: If vLLM is asked for and not installed.
        ValueError: If a setting is out of range, a block, site or width does not fit, too few loops or normal answers
            are found, or no feature rises in loops.
    """
    if rank_by not in RANKINGS:
        raise ValueError(f"`rank_by` must be one of {', '.join(map(repr, RANKINGS))}, got {rank_by!r}.")
    num_candidates = max(16, num_features) if num_candidates is None else num_candidates
    if min(num_features, num_prompts) < 1 or num_candidates < num_features:
        raise ValueError(
            "`num_features` and `num_prompts` must be 1 or more, `num_candidates` at least `num_features`; got "
            f"{num_features}, {num_prompts} and {num_candidates}."
        )
    if not strength > 0 or not math.isfinite(strength):
        raise ValueError(f"`strength` must be above 0, got {strength}; candidates are pushed both up and down by it.")
    if rank_by == "causal" and prompts is None:
        raise ValueError(
            "To rank by cause, features are pushed up while the model answers normal prompts. Give `prompts`, or set "
            "`rank_by='increase'`."
        )
    sampling = Sampling(max_new_tokens, temperature, seed=seed, batch_size=batch_size)
    if max_new_tokens < MIN_TOKENS and (loops is None or rank_by == "causal"):
        raise ValueError(
            f"A loop is {MIN_TOKENS} tokens or longer, `max_new_tokens` is {max_new_tokens}: no answer could show "
            f"one. Set it to {MIN_TOKENS} or more, or give `loops` and set `rank_by='increase'`."
        )
    normal_sampling = replace(sampling, temperature=normal_temperature)
    check_prompts(prompts)
    require_engine(engine, model, engine_kwargs)
    if prompts is None and engine != "transformers":
        raise ValueError("`engine='vllm'` samples answers, and without `prompts` there are none. Leave it out.")
    saes = load_saes(sae, blocks, site, k=k, format=format, revision=revision)
    network, tokenizer = load_model_and_tokenizer(model, tokenizer)
    for each in saes:
        require_fit(each, network)
        if rank_by == "causal" and engine != "transformers":
            pushed_block(each.block, each.site)  # raises where an engine cannot push
    require_one_width(saes)
    questions = (
        None if prompts is None else read_questions(prompts, tokenizer, chat_template_kwargs=chat_template_kwargs)
    )
    if questions:
        check_length(network, max(len(question.prompt) for question in questions), max_new_tokens)
        if loops is None and len(questions) < min(MIN_TEXTS, num_loops):
            raise ValueError(
                f"{len(questions)} prompts are answered once each; at least {min(MIN_TEXTS, num_loops)} of the "
                "answers have to loop. Give more prompts, or texts that loop as `loops`."
            )

    of_engine: dict[str, Any] = {"batch_size": batch_size, "engine_kwargs": engine_kwargs}
    with eval_mode(network):
        with answering(engine, model, network, tokenizer, **of_engine) as answerer:
            samples = collect_samples(
                answerer,
                tokenizer,
                questions=questions,
                loops=loops,
                num_loops=num_loops,
                sampling=sampling,
                normal_temperature=normal_temperature,
                chat_template_kwargs=chat_template_kwargs,
            )
        benign = benign_texts(samples.normal, tokenizer)
        options: dict[str, Any] = {"specials": samples.specials, "batch_size": batch_size}
        on_loops = mean_increase(network, samples.loops, saes, **options)
        on_benign = mean_increase(network, benign, saes, **options)
        sums, norms = _statistics(
            network,
            saes,
            [text.as_text("benign", specials=samples.specials) for text in benign] + samples.loop_texts(),
            samples.normal_texts(),
            batch_size,
        )
        sets = [
            _candidates(
                each,
                on_loops[place_of(each)],
                on_benign[place_of(each)],
                sums[place_of(each)],
                norms[place_of(each)],
                num_candidates if rank_by == "causal" else num_features,
            )
            for each in saes
        ]
        candidates = replace(sets[0].merge(*sets[1:]), **found_on(network, tokenizer), target_groups=("loop",))
        notes: dict[str, Any] = {
            "rank_by": rank_by,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "normal_temperature": normal_temperature,
            "seed": seed,
            "benign_share": BENIGN_SHARE,
            "num_benign": len(benign),
            **samples.notes,
        }
        if questions:
            notes |= describe_questions(tokenizer, questions, chat_template_kwargs)
            notes["unused_generation_settings"] = name_unused_settings(network)
            notes["engine"] = engine
        if rank_by == "causal":
            pushed = _pushed(candidates, sampling.seed)
            with answering(engine, model, network, tokenizer, [pushed], **of_engine) as answerer:
                scores, rates = _causal_scores(
                    answerer, tokenizer, candidates, pushed, samples, sampling, normal_sampling, num_prompts, strength
                )
            candidates = replace(candidates, scores=scores | candidates.scores)
            notes |= {"strength": strength, **rates}
    feature_set = _best(candidates, rank_by, num_features)
    _warn_where_chance_does_as_much(feature_set, notes)
    flagged = [
        name
        for name, rise, elsewhere in zip(
            feature_set.names, feature_set.scores["increase"].tolist(), feature_set.scores["benign"].tolist()
        )
        if elsewhere >= BENIGN_SHARE * rise
    ]
    for name in flagged:
        logger.warning(
            "Feature %s also rises in benign repetition (copied questions, lists, refrains), by half as much as in "
            "loops or more: holding it down will be felt there.",
            name,
        )
    for each in saes:
        num_found = list(zip(feature_set.blocks, feature_set.sites)).count(place_of(each))
        if num_found < num_features:
            logger.warning("Only %d features of %s rise in loops.", num_found, describe_place(place_of(each)))
    return replace(feature_set, notes=notes | {"fires_on_benign": flagged})


def _statistics(
    model: nn.Module, saes: Sequence[FrozenSAE], repeated: list[Text], normal: list[Text], batch_size: int
) -> tuple[dict[Place, list[GroupSums]], dict[Place, float]]:
    """Sums over benign and looping tokens, then over normal ones, by place; and the norm on normal text."""
    of_repeated = collect_statistics(model, batches(repeated, GROUPS[:2], batch_size), saes, 2)
    of_normal = collect_statistics(model, batches(normal, GROUPS[2:], batch_size), saes, 1)
    norms = {place: float(sums.norms.median()) for place, sums in of_normal.items()}
    return {place: [of_repeated[place], of_normal[place]] for place in norms}, norms


def _candidates(
    sae: FrozenSAE, on_loops: Tensor, on_benign: Tensor, sums: list[GroupSums], norm: float, num_candidates: int
) -> FeatureSet:
    """The features of one SAE that rise most in loops, with the statistics of the three groups."""
    eligible = (on_loops > 0).nonzero().flatten()
    if len(eligible) == 0:
        raise ValueError(f"No feature of {describe_place(place_of(sae))} rises in loops. Try another block or SAE.")
    ids = eligible[on_loops[eligible].argsort(descending=True)][:num_candidates]

    def per_group(name: str) -> Tensor:
        values_GF = torch.cat([getattr(each, name) for each in sums])
        return values_GF[:, ids.to(values_GF.device)].T.float().cpu()

    rates_FG = per_group("firing_rate")
    numbers = ids.tolist() if sae.features is None else [sae.features[i] for i in ids.tolist()]
    where = place_name(place_of(sae))
    return replace(
        FeatureSet.from_sae(sae, numbers, names=[f"repetition.{where}.{number}" for number in numbers]),
        groups=GROUPS,
        mean=per_group("mean_pre"),
        std=per_group("std_pre"),
        scores={
            "increase": on_loops[ids],
            "benign": on_benign[ids],
            "firing_rate": rates_FG[:, GROUPS.index("loop")],
            "firing_rate_normal": rates_FG[:, GROUPS.index("normal")],
        },
        residual_norms=torch.full((len(ids),), norm),
    )


def _pushed(candidates: FeatureSet, seed: int) -> FeatureSet:
    """What is pushed along: the candidates, and behind them a random direction at each of their places."""
    place_of_candidate = list(zip(candidates.blocks, candidates.sites))
    one_each = [place_of_candidate.index(place) for place in candidates.places]
    random = random_directions(candidates[one_each], seed)
    return FeatureSet.from_directions(
        torch.cat([torch.nn.functional.normalize(candidates.directions, dim=1), random.directions]),
        blocks=candidates.blocks + random.blocks,
        sites=candidates.sites + random.sites,
        names=candidates.names + random.names,
        residual_norms=torch.cat([candidates.residual_norms, random.residual_norms]),
    )


def _causal_scores(
    model: nn.Module | EngineAnswers,
    tokenizer: Any,
    candidates: FeatureSet,
    pushed: FeatureSet,
    samples: LoopSamples,
    sampling: Sampling,
    normal_sampling: Sampling,
    num_prompts: int,
    strength: float,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Scores of the candidates, and the rates that they come from, with those of a random direction at each place."""

    def change(
        questions: Sequence[Question], how: Sampling, strength: float, what: str
    ) -> tuple[LoopRates, LoopRates]:
        baseline = loop_rates(model, tokenizer, questions, how, description=f"{what}: not pushed")
        return baseline, loop_rates(model, tokenizer, questions, how, pushed, strength, description=f"{what}: pushed")

    normal = samples.normal_questions[:num_prompts]
    looping = [loop.question for loop in samples.loops[:num_prompts]]
    before_up, after_up = change(normal, normal_sampling, strength, "Normal prompts")
    before_down, after_down = change(looping, sampling, -strength, "Looping prompts")
    up, down = after_up - before_up, before_down - after_down
    num = len(candidates)
    scores = {
        "causal": (up.endless + down.endless)[:num],
        "up": up.endless[:num],
        "down": down.endless[:num],
        "causal_share": (up.share + down.share)[:num],
    }
    rates = {
        "num_normal_prompts": before_up.num_answers,
        "num_looping_prompts": before_down.num_answers,
        "endless_normal": float(before_up.endless),
        "endless_looping": float(before_down.endless),
        "random": {
            place_name(place): {"up": float(up.endless[num + i]), "down": float(down.endless[num + i])}
            for i, place in enumerate(candidates.places)
        },
    }
    return scores, rates


def _best(candidates: FeatureSet, rank_by: str, num_features: int) -> FeatureSet:
    order = ranking(candidates.scores, rank_by)
    places = list(zip(candidates.blocks, candidates.sites))
    picked = [i for place in dict.fromkeys(places) for i in [j for j in order if places[j] == place][:num_features]]
    return candidates[picked]


def _warn_where_chance_does_as_much(feature_set: FeatureSet, notes: Mapping[str, Any]) -> None:
    for block, site in feature_set.places if "random" in notes else ():
        chance = notes["random"][place_name((block, site))]
        best = float(feature_set.at((block, site)).scores["causal"][0])
        if best <= chance["up"] + chance["down"]:
            logger.warning(
                "No candidate of %s changes the rate of endless answers more than a random direction does "
                "(%.2f). Try other blocks, another `strength`, or a lower `normal_temperature`.",
                describe_place((block, site)),
                chance["up"] + chance["down"],
            )
