"""[`ClassifierReward`]: a reward in TRL's signature for answers that a classifier on features calls positive."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..eval_mode import eval_mode
from ..features.read.loading import load_model_and_tokenizer, place_of, require_fit
from ..features.read.texts import batches, tokenize
from ..hooks.blocks import unwrap
from ..hooks.sites import Place
from ..hooks.truncated import read_sites
from ..model_loading import load_tokenizer
from ..saes.frozen import FrozenSAE
from .classifier import FeatureClassifier
from .policy_reading import PolicyReading
from .pooling import pool_activations

_NO_LIMIT = 1 << 30


class ClassifierReward:
    """
    `sign` for an answer that a [`FeatureClassifier`] calls positive, else 0. For GRPO and other trainers of TRL.

    It reads answers in one of two ways:

    - By default in a frozen copy of the model, with one more forward pass that stops at the deepest block read. What
      the features mean does not change while the policy is trained.
    - With [`ClassifierReward.read_policy`], in the policy's own pass: while it generates. This costs no forward pass,
      but the policy learns to move its own features, so that the reward can be had without better answers. Watch the
      share of positives with a frozen copy as well.

    ```python
    classifier = FeatureClassifier.load("negative.safetensors", model=name, saes=sae)
    trainer = GRPOTrainer(name, reward_funcs=[ClassifierReward(classifier, sign=-1), my_task_reward], ...)
    ```

    Args:
        classifier ([`FeatureClassifier`]):
            A fitted classifier with a model, and SAEs where it needs them.
        sign (`float`, *optional*, defaults to `-1`):
            Reward of a positive answer: negative against what the classifier finds, positive for it.
        graded (`bool`, *optional*, defaults to `False`):
            Multiply `sign` by the probability of the positive label; for the rule `"logistic"`.
        batch_size (`int`, *optional*, defaults to `16`):
            Answers in one forward pass of the frozen copy.

    Raises:
        ValueError: If `sign` is 0, the classifier is not fitted, or it has no probability and `graded` is set.

    The reward can be pickled if the model is a name: the copy is loaded again where it is needed.
    """

    __name__ = "classifier_reward"

    def __init__(
        self, classifier: FeatureClassifier, *, sign: float = -1.0, graded: bool = False, batch_size: int = 16
    ):
        if not sign:
            raise ValueError("`sign` is 0, so that the reward would say nothing. Give -1 against the label, 1 for it.")
        if not hasattr(classifier, "rule_"):
            raise ValueError("The classifier is not fitted. Call `fit`, or `FeatureClassifier.load` a fitted one.")
        if graded and classifier.rule_.kind != "logistic":
            raise ValueError("`graded` needs probabilities, which only the rule 'logistic' has. Leave it out.")
        self.classifier = classifier
        self.sign = sign
        self.graded = graded
        self.batch_size = batch_size
        self._forget()

    def _forget(self) -> None:
        self._network: Any = None
        self._tokenizer: Any = None
        self._saes: list[FrozenSAE] | None = None
        self._policy: PolicyReading | None = None

    def __getstate__(self) -> dict[str, Any]:
        held = ("_network", "_tokenizer", "_saes", "_policy")
        return {name: None if name in held else value for name, value in vars(self).items()}

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """
        Args:
            prompts, completions (`Sequence[str]` or `Sequence[list[dict]]`):
                Questions and answers, as text or as messages.
            completion_ids (`Sequence[Sequence[int]]`, *optional*):
                Token ids of each answer; needed with [`ClassifierReward.read_policy`].
            **kwargs:
                Whatever else TRL passes. It is not used.

        Returns:
            `list[float]`: a reward for each answer; 0 for an empty one.

        Raises:
            ValueError: If the policy is read and did not generate these answers.
        """
        if not len(completions):
            return []
        acts_BK = self._of_policy(completion_ids) if self._policy else self._of_copy(prompts, completions)
        scores_B = self.classifier.rule_.scores(acts_BK)
        if self.graded:
            return [self.sign * float(each) for each in 1 / (1 + np.exp(-scores_B))]
        return [self.sign * float(score > 0) for score in scores_B]

    # The policy's own pass

    def read_policy(self, model: nn.Module, tokenizer: Any = None) -> "ClassifierReward":
        """
        Read answers while this model generates them, instead of in a frozen copy.

        Call it once the trainer has the model: `reward.read_policy(trainer.model)`. Rollouts that are steered are read
        as they were steered.

        Args:
            model (`torch.nn.Module`):
                The model that is trained and generates, wrapped or not.
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                Its tokenizer, loaded from its folder if left out.

        Returns:
            [`ClassifierReward`]: this reward.

        Raises:
            ValueError: If the model is not that of the classifier.
        """
        self.release_policy()
        self._load_saes(model)
        self._tokenizer = load_tokenizer(tokenizer or self.classifier.tokenizer, unwrap(model))[0]
        self._policy = PolicyReading(model, self._places(), self._encode, len(self.classifier.rule_))
        return self

    def release_policy(self) -> None:
        """Remove the hooks of [`ClassifierReward.read_policy`]; a frozen copy is read from now on."""
        if self._policy is not None:
            self._policy.close()
            self._policy = None

    def _of_policy(self, completion_ids: Sequence[Sequence[int]] | None) -> np.ndarray:
        if completion_ids is None:
            raise ValueError("`completion_ids` are needed to read the policy's own pass; TRL passes them.")
        assert self._policy is not None
        return self._policy.largest(completion_ids, set(self._tokenizer.all_special_ids))

    def _encode(self, values: dict[Place, Tensor]) -> Tensor:
        parts = {place_of(sae): sae.encode(values[place_of(sae)]) for sae in self._saes or ()}
        return self._columns(parts)

    # A frozen copy

    def _of_copy(self, prompts: Sequence[Any], completions: Sequence[Any]) -> np.ndarray:
        self._load_copy()
        options = replace(self.classifier.options, group_column="", max_length=_NO_LIMIT, batch_size=self.batch_size)
        acts_BK = np.zeros((len(completions), len(self.classifier.rule_)))
        filled = [i for i, completion in enumerate(completions) if _has_text(completion)]
        if not filled:
            return acts_BK
        rows = [{"prompt": prompts[i], "completion": completions[i], "": ""} for i in filled]
        texts = tokenize(rows, self._tokenizer, options)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i].ids))
        device = next(self._network.parameters()).device
        done = 0
        with torch.inference_mode(), eval_mode(self._network):
            for batch in batches([texts[i] for i in order], [""], self.batch_size):
                batch, num = batch.to(device), len(batch.groups)
                values = read_sites(
                    self._network, self._places(), input_ids=batch.input_ids, attention_mask=batch.attention_mask
                )
                text_N = batch.counted.nonzero()[:, 0]
                pooled = {
                    place_of(sae): pool_activations(sae, values[place_of(sae)][batch.counted], text_N, num, "max")
                    for sae in self._saes or ()
                }
                acts = self._columns(pooled).cpu().numpy()
                acts_BK[[filled[i] for i in order[done : done + num]]] = acts
                done += num
        return acts_BK

    def _load_copy(self) -> None:
        if self._network is not None:
            return
        if self.classifier.model is None:
            raise ValueError(
                "The reward reads answers in a copy of the model: give `model` to the classifier, or `read_policy`."
            )
        network, self._tokenizer = load_model_and_tokenizer(self.classifier.model, self.classifier.tokenizer)
        self._load_saes(network)
        self._network = network.requires_grad_(False) if isinstance(self.classifier.model, str) else network

    def _load_saes(self, network: nn.Module) -> None:
        device = next(network.parameters()).device
        self._saes = [sae.to(device) for sae in self.classifier.loaded_saes()]
        for sae in self._saes:
            require_fit(sae, network)

    def _places(self) -> list[Place]:
        return [place_of(sae) for sae in self._saes or ()]

    def _columns(self, by_place: dict[Place, Tensor]) -> Tensor:
        """The rule's features, `(B, K)`, of activations of each SAE's features."""
        rule, columns = self.classifier.rule_, []
        held = {place_of(sae): sae.features for sae in self._saes or ()}
        for place, feature in zip(rule.places, rule.feature_ids):
            features = held[place]
            columns.append(by_place[place][:, feature if features is None else features.index(feature)])
        return torch.stack(columns, dim=1)


def _has_text(completion: Any) -> bool:
    if isinstance(completion, str):
        return bool(completion.strip())
    return bool(completion) and bool((completion[-1].get("content") or "").strip())
