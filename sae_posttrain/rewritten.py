"""Libraries that rewrite the trainers which ours extend: refused, since what we add would be left out silently."""

import sys


def refuse_rewritten(trainer: type) -> None:
    """
    Refuse to train where Unsloth has been imported.

    It puts classes of its own in the place of TRL's trainers and writes their loss and generation anew, from TRL's
    source; hooks and overrides on the originals are then called at other places, or not at all.

    Args:
        trainer (`type`):
            The class that is being made.

    Raises:
        RuntimeError: If Unsloth is loaded, or one of the classes behind the trainer is Unsloth's.
    """
    named = (f"{base.__module__}.{base.__name__}".lower() for base in trainer.__mro__)
    if "unsloth" in sys.modules or any("unsloth" in name for name in named):
        raise RuntimeError(
            f"{trainer.__name__} cannot be used where Unsloth is imported: it replaces TRL's trainers and the models' "
            "forward passes by its own, in which the penalty or the steering would be left out without a word. Train "
            "in a process that does not import unsloth."
        )
