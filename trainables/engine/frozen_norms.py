"""Norms with frozen weights, in forward mode.

When the input of a norm has a tangent but its weights have none, torch's formula fails while it is traced. So these weights get
tangents of zeros.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

make_dual: Callable[..., Tensor] = forward_ad.make_dual
unpack_dual: Callable[..., tuple[Tensor, Tensor | None]] = forward_ad.unpack_dual
NORMS: set[Callable[..., Tensor]] = {F.layer_norm, F.group_norm, F.batch_norm, F.instance_norm, F.rms_norm}


class FrozenNorms(TorchFunctionMode):
    """A context in which the weights and biases of norms have tangents wherever the norm's input has one."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Intercepts norms; torch calls this method for every torch function inside the context."""
        if func not in NORMS:
            return func(*args, **(kwargs or {}))
        call = inspect.signature(func).bind(*args, **(kwargs or {}))
        if unpack_dual(call.arguments["input"])[1] is not None:
            for name in ("weight", "bias"):
                value = call.arguments.get(name)
                if isinstance(value, Tensor) and unpack_dual(value)[1] is None:
                    call.arguments[name] = make_dual(value, torch.zeros_like(value))
        return func(*call.args, **call.kwargs)
