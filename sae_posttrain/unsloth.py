"""Refuse to train beside Unsloth, which replaces the trainers that ours extend and would drop what ours add."""

import sys


def refuse_unsloth(trainer: type) -> None:
    """
    Refuse to train where Unsloth has been imported.

    Unsloth replaces TRL's trainers by classes of its own and rewrites their loss and generation from TRL's source. Our
    hooks and overrides are then called at other places, or not at all.

    Args:
        trainer: The class of the trainer that is being built.
    """
    names = (f"{base.__module__}.{base.__name__}".lower() for base in trainer.__mro__)
    if "unsloth" in sys.modules or any("unsloth" in name for name in names):
        raise RuntimeError(
            f"{trainer.__name__} cannot be used where Unsloth is imported. Unsloth replaces TRL's trainers and the "
            "models' forward passes by its own, which would skip the penalty or the steering silently. Train in a "
            "process that does not import unsloth."
        )
