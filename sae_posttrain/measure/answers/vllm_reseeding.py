"""What a worker of vLLM needs so that each batch of answers has a seed of its own."""


class Reseeded:
    """Added to vLLM's worker by its `worker_extension_cls`: its methods are called by `LLM.collective_rpc`."""

    def reseed(self, seed: int) -> None:
        """Seed the random numbers that this worker samples tokens with."""
        import torch

        torch.manual_seed(seed)
