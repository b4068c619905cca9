"""Settings of transformers that got another name."""

from typing import Any

_NEW_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def use_new_names(args: Any) -> None:
    """
    Pass settings on under their new names, before `TrainingArguments.__post_init__` warns of the old ones.

    TRL's configs set `gradient_checkpointing` themselves, so the warning would come with every training. Where the
    installed transformers know the old name alone, nothing is done.
    """
    for old, new in _NEW_NAMES.items():
        if hasattr(args, new) and getattr(args, new) is None and getattr(args, old, None) is not None:
            setattr(args, new, getattr(args, old))
