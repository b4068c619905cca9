"""What tests ask of a trainer that has run."""

import torch


def weights(trainer) -> torch.Tensor:
    """All parameters of its model in one tensor."""
    return torch.cat([p.detach().flatten() for _, p in sorted(trainer.model.named_parameters())])


def logged(trainer, key: str) -> list[float]:
    """Values of a key over its log."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]
