"""Settings of transformers that were renamed."""

from typing import Any

_NEW_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def use_new_names(args: Any) -> None:
    """
    Set settings under their new names, before `TrainingArguments.__post_init__` warns about the old names.

    TRL's configs set `gradient_checkpointing` themselves, so every training would show the warning. If the installed
    transformers knows only the old name, nothing is done.
    """
    for old, new in _NEW_NAMES.items():
        if hasattr(args, new) and getattr(args, new) is None and getattr(args, old, None) is not None:
            setattr(args, new, getattr(args, old))
