"""[`ClassifierJudge`]: the share of positives among the answers that a training is watched by."""

from collections.abc import Mapping
from typing import Any

from .classifier import FeatureClassifier
from .classifier_reward import ClassifierReward


class ClassifierJudge:
    """
    A judge for [`FaultWatchCallback`]: whether a [`FeatureClassifier`] calls an answer positive.

    It reads answers in a frozen copy of the model, so that what the features mean does not change while the model is
    trained. The copy is loaded at the first watch and kept in memory.

    ```python
    classifier = FeatureClassifier.load("negative.safetensors", model=name, saes=sae)
    judges = {"negative": ClassifierJudge(classifier)}
    trainer.add_callback(FaultWatchCallback("prompts.jsonl", judges=judges, trainer=trainer))  # logs watch/negative
    ```

    Args:
        classifier ([`FeatureClassifier`]):
            A fitted classifier with a model by name, or a copy that is not trained, and SAEs where it needs them.
        chat (`bool`, *optional*, defaults to `False`):
            Read the prompt as a user's turn of the chat template, for prompts that are messages. By default the answer
            follows the prompt's text.

    Raises:
        ValueError: If the classifier is not fitted or has no model.
    """

    def __init__(self, classifier: FeatureClassifier, *, chat: bool = False):
        if classifier.model is None:
            raise ValueError("The judge reads answers in a frozen copy: give the classifier `model`, by its name.")
        self._reward = ClassifierReward(classifier, sign=1.0)
        self._chat = chat

    def __call__(self, answer: Mapping[str, Any]) -> bool | None:
        """
        Args:
            answer (`Mapping`):
                A judged answer, with `prompt` and `answer`.

        Returns:
            `bool`, *optional*: whether it is positive; `None` for an empty answer, which is left out of the share.
        """
        if not answer["answer"].strip():
            return None
        prompt: Any = answer["prompt"]
        completion: Any = answer["answer"]
        if self._chat:
            prompt = [{"role": "user", "content": prompt}]
            completion = [{"role": "assistant", "content": completion}]
        return self._reward([prompt], [completion])[0] > 0
