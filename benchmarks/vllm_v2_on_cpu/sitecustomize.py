"""
Lets vLLM's V2 runner, whose kernels are Triton's, run on a machine without a GPU: Triton interprets them.

Triton looks for a driver; this one says "cpu". It serves tests and is slow.
"""

import triton.backends as backends
from triton.backends.compiler import GPUTarget


class Driver:
    """A driver that is there and does nothing."""

    @staticmethod
    def is_active():
        return True

    def get_current_device(self):
        return 0

    def get_current_target(self):
        return GPUTarget("cpu", "x86", 32)

    def get_current_stream(self, *_):
        return 0


backends.backends["cpu"] = backends.Backend(compiler=None, driver=Driver)
for name in ("amd", "nvidia"):
    backends.backends.pop(name, None)
