"""How texts are read: the options that every search and every measurement on texts shares."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class TextOptions:
    """
    How texts are read, for [`find_features`], [`find_directions`], [`measure_groups`] and the like.

    ```python
    options = TextOptions(group_column="language", max_texts=200)
    features = find_features(model, sae, "texts.jsonl", target_group="zh", blocks=[5], text_options=options)
    ```

    Args:
        group_column, text_column (`str`, *optional*, defaults to `"lang"` and `"text"`):
            Columns of the rows.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a `datasets` id.
        max_texts (`int`, *optional*):
            Texts per group; all by default.
        max_length (`int`, *optional*, defaults to `512`):
            Tokens of each text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the chat template for texts that are messages, e.g. `{"enable_thinking": False}`.
        batch_size (`int`, *optional*, defaults to `16`):
            Texts in one forward pass.
    """

    group_column: str = "lang"
    text_column: str = "text"
    split: str = "train"
    max_texts: int | None = None
    max_length: int = 512
    chat_template_kwargs: Mapping[str, Any] | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("max_length", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")

    def take(self, settings: dict[str, Any]) -> "TextOptions":
        """These options, changed by those that `settings` names. They are removed from `settings`."""
        named = [each.name for each in fields(self) if each.name in settings]
        return replace(self, **{name: settings.pop(name) for name in named})


ALL_TEXTS = TextOptions()
"""Options of most searches by default: all texts, up to 512 tokens of each."""
