"""Stacks: one tensor that holds a tensor of each of K trials, so that one operation serves all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors (...) as one, (K, ...). Smaller tensors are padded with zeros at the end of each dimension."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    whole = tensors[0].detach().new_zeros(len(tensors), *shape)
    for number, tensor in enumerate(tensors):
        part(whole, number, tensor.shape).copy_(tensor.detach())
    return whole


def part(whole: Tensor, number: int, shape: Sequence[int]) -> Tensor:
    """The tensor of `shape` that trial `number` has in a stack: a view, without the padding."""
    view: Tensor = whole[number][tuple(slice(size) for size in shape)]
    return view


def stack_parameters(parameters: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Stacks (K, ...) of the parameters of K trials, which become views of the stacks."""
    stacks = []
    for of in zip(*parameters, strict=True):
        whole = stack(of)
        for number, parameter in enumerate(of):
            parameter.data = part(whole, number, parameter.shape)
        stacks.append(whole)
    return stacks


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """A number of each trial, (K, 1, ...), which multiplies a stack `like` (K, ...)."""
    numbers = torch.tensor(values, dtype=like.dtype, device=like.device)
    return numbers.view(len(values), *[1] * (like.dim() - 1))


def norms(stacks: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm over all entries that a trial has in all stacks, (K,)."""
    of_stacks = torch.stack([torch.linalg.vector_norm(whole, dim=tuple(range(1, whole.dim()))) for whole in stacks])
    found: Tensor = torch.linalg.vector_norm(of_stacks, dim=0)
    return found
