"""Whether each process holds only a part of a model's parameters."""

from torch import nn
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are divided over processes: by FSDP, DeepSpeed ZeRO-3 or tensor parallelism."""
    # Under ZeRO-3 a parameter has a `ds_id`; under the first FSDP its modules are of that class.
    return any(isinstance(each, DTensor) or hasattr(each, "ds_id") for each in model.parameters()) or any(
        type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()
    )
