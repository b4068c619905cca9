"""Settings that tests train with, and what they ask of a trainer that has run."""

import torch

ON_CPU = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}
"""A run on the CPU that logs every step and leaves no files."""

ONE_STEP_OF_SGD = ON_CPU | {"max_steps": 1, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
"""One step that moves the weights by the learning rate times the gradient."""


def weights(trainer) -> torch.Tensor:
    """All parameters of its model in one tensor."""
    return torch.cat([p.detach().flatten() for _, p in sorted(trainer.model.named_parameters())])


def logged(trainer, key: str) -> list[float]:
    """Values of a key over its log."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]
