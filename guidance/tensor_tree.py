"""Trees of batched tensors: nested dicts and lists whose tensors hold one row for each sample.

States of samplers and of guidance are such trees. Leaves that are no tensors, and tensors without axes, belong to the
whole batch and stay as they are. Needs neither diffusers nor ComfyUI.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

TensorTree = Any
"""A tensor (N, ...), a dict or list of trees, or any other value."""


def map_tensors(tree: TensorTree, function: Callable[[Tensor], Any]) -> TensorTree:
    """The same structure with `function(tensor)` in place of every batched tensor; dicts and lists are new."""
    if isinstance(tree, Tensor) and tree.ndim >= 1:
        return function(tree)
    if isinstance(tree, list):
        return [map_tensors(item, function) for item in tree]
    if isinstance(tree, dict):
        return {name: map_tensors(item, function) for name, item in tree.items()}
    return tree


def select(tree: TensorTree, batch_indices: Sequence[int]) -> TensorTree:
    """The tree of some of the samples, in the order of `batch_indices`; tensors are copies."""
    return map_tensors(tree, lambda tensor: tensor[list(batch_indices)])


def split(tree: TensorTree, samples: int) -> list[TensorTree]:
    """A tree for each of `samples` samples, whose tensors have an equal number of rows (frames) each; copies."""
    return [
        map_tensors(tree, lambda tensor, index=index: tensor.tensor_split(samples)[index].clone())
        for index in range(samples)
    ]


def join(trees: Sequence[TensorTree]) -> TensorTree:
    """One tree of all samples of several trees of one structure; values of the whole batch are those of the first."""
    first = trees[0]
    if isinstance(first, Tensor) and first.ndim >= 1:
        return torch.cat(list(trees))
    if isinstance(first, list):
        return [join(items) for items in zip(*trees, strict=True)]
    if isinstance(first, dict):
        return {name: join([tree[name] for tree in trees]) for name in first}
    return first
