"""What writes the texts of a synthesis: anything that turns conversations into answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ...features.set.feature_set import FeatureSet

Messages = Sequence[dict[str, str]]
"""A conversation: `[{"role": "user", "content": "…"}]`."""


@dataclass(frozen=True)
class Aim:
    """
    Which feature each answer of a batch should fire, for generators that steer.

    Attributes:
        features ([`FeatureSet`]):
            The features of the batch, each once.
        rows (`tuple[int, ...]`):
            For each conversation, the number of its feature in the set.
    """

    features: "FeatureSet"
    rows: tuple[int, ...]


class Generator(Protocol):
    """
    A callable from conversations to answers, one each. Any function will do:

    ```python
    def mine(conversations, *, seed, aim):
        return [ask(messages) for messages in conversations]
    ```

    `None` or an empty text stands for an answer that is not usable; an exception ends the run, which can be resumed.
    A generator may have an attribute `settings`, a dict of plain values: a folder is not continued with others. One
    with a true attribute `completions` is given texts to go on with, each as the last message.
    """

    def __call__(self, conversations: Sequence[Messages], *, seed: int, aim: Aim | None) -> Sequence[str | None]:
        """
        Answer conversations.

        Args:
            conversations (`Sequence[Messages]`):
                What to answer.
            seed (`int`):
                Seed of the sampling; another one for each batch.
            aim ([`Aim`], *optional*):
                The feature of each answer, for a generator that steers. `None` where nothing should be steered.
        """
        ...


def describe_generator(generator: Any) -> dict[str, Any]:
    """What the records say of a generator: its settings, or the name of a function."""
    settings = getattr(generator, "settings", None)
    name = getattr(generator, "__name__", None) or type(generator).__name__
    return {"name": name, **(settings if isinstance(settings, dict) else {})}
