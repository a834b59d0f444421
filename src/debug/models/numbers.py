"""Numbers that models compute in: dtypes, what rounding may do, when memory is out."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SELF_CHECK_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.03}
SMALLEST_EFFECT = {"float32": 1e-2, "bfloat16": 2.5, "float16": 0.3}
"""Largest change of a logit that rounding alone may cause, by dtype: logits of magnitude 10 to 30 carry 8 bits in
bfloat16, 11 in float16, 24 in float32. Re-runs compare with it (self-checks measure their own). SMALLEST_EFFECT is the
smallest whole effect |z_cf - z_clean| by which a difference is normalized: there rounding moves it by 1% in float32, by
10% elsewhere."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, so that half as much may do: of a GPU, of MPS, or of the CPU.

    An illegal access, memory that cannot be pinned and the like also speak of memory, and half as much helps none.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # on Windows
    "MPS backend out of memory",
    "CUDA error: out of memory",  # of what is allocated beside torch's own allocator
)
