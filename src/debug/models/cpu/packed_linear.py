"""Matrix products of batches on the CPU in float32, by oneDNN, with weights that are brought into its layout once.

PyTorch leaves such products to MKL. oneDNN was 1.15 times as fast on an AMD EPYC where a batch's prompts are read, and
1.2 to 2.5 times with a row for each prompt, as tokens are generated; bringing SmolLM2's weights into its layout takes
0.2 s. PyTorch's compiler does the same when it freezes a model; its two operators are used here without compiling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from debug.kinds import Argument
from debug.models.cpu import switched_on

_T = TypeVar("_T")


class PackedLinear(TorchFunctionMode):
    """While it lasts, a model's linear layers multiply by packed weights; equal to PyTorch but for rounding.

    A weight is packed when it is first used, and kept as long as this object is: weights must not change meanwhile.
    Nothing happens to weights of other dtypes and devices, where PyTorch has no MKL to leave them to, where gradients
    are asked for, and where a second copy of the weights would take more than half of the free memory.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        linear = {id(module.weight): module.weight for module in model.modules() if type(module) is nn.Linear}
        weights = {key: weight for key, weight in linear.items() if _suits(weight)}
        fits = sum(weight.nbytes for weight in weights.values()) < psutil.virtual_memory().available / 2
        self.weights: dict[int, Tensor] = weights if fits else {}
        self.packed: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., _T], types: object, args: tuple = (), kwargs: dict[str, Argument] | None = None
    ) -> _T | Tensor:
        if func is nn.functional.linear and not torch.is_grad_enabled():
            return self._product(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(weight) not in self.weights:
            return nn.functional.linear(input, weight, bias)
        if id(weight) not in self.packed:
            self.packed[id(weight)] = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        return torch.ops.mkldnn._linear_pointwise(input, self.packed[id(weight)], bias, "none", [], "")


ROWS = 64
"""For how many tokens at a time the layout is chosen; it serves any number."""


def _suits(weight: Tensor) -> bool:
    mkl = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return switched_on() and mkl and weight.dtype == torch.float32 and weight.device.type == "cpu"
