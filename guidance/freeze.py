"""Networks inside rewards and decoders, made ready for a gradient with respect to their input."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import nn


def modules_of(*callables: object) -> list[nn.Module]:
    """The networks that callables hold: modules, methods of modules, partials, closures, dataclasses, sequences."""
    modules: dict[int, nn.Module] = {}
    seen: set[int] = set()
    waiting = list(callables)
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, (str, bytes, int, float, type(None), type, torch.Tensor)):
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            modules[id(item)] = item
        else:
            waiting.extend(_held_by(item))
    return list(modules.values())


def _held_by(item: object) -> list[object]:
    if isinstance(item, dict):
        return list(item.values())
    if isinstance(item, (list, tuple, set, frozenset)):
        return list(item)
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, ModuleType):
        return []
    held = [getattr(item, "__self__", None), *getattr(item, "__dict__", {}).values()]
    for cell in getattr(item, "__closure__", None) or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # a variable that has no value yet
            continue
    return held


@contextmanager
def frozen(modules: list[nn.Module]) -> Iterator[None]:
    """Within the block the modules' weights take part in a backward pass but collect no gradient themselves.

    Weights that were made, or moved, under torch.inference_mode cannot take part; they are replaced by equal ordinary
    ones, for good. Must be entered outside inference mode.
    """
    fresh: dict[int, torch.Tensor] = {}  # a weight that two modules share stays shared
    for module in modules:
        for child in module.modules():
            _replace_inference_tensors(child, fresh)
    thawed = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


def _replace_inference_tensors(module: nn.Module, fresh: dict[int, torch.Tensor]) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.is_inference():
            copy = nn.Parameter(parameter.clone(), requires_grad=parameter.requires_grad)
            module._parameters[name] = fresh.setdefault(id(parameter), copy)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_inference():
            module._buffers[name] = fresh.setdefault(id(buffer), buffer.clone())
