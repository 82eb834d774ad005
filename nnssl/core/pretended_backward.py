"""A backward pass without PyTorch's engine, which needs a driver for tensors that say that they are on a card."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from nnssl.core.errors import UserError

_LEAF = 2**63  # sequence numbers of leaves, which come first, as in the engine
_NAMES = itertools.count(1)
_OLDEST_TORCH = "2.11"  # in 2.4 nodes do not know the shapes of their inputs; 2.6 asks for a driver


class TorchTooOld(UserError):
    """A step cannot be rehearsed with this release of torch."""


def check_torch() -> None:
    """Refuse a release of torch with which a step cannot be rehearsed.

    Raises:
        TorchTooOld: the release that is needed.
    """
    if not supports_rehearsal():
        raise TorchTooOld(f"the memory of a step is estimated with torch {_OLDEST_TORCH} or newer, and this is "
                          f"{torch.__version__}; pip install 'torch>={_OLDEST_TORCH}'")  # fmt: skip


def supports_rehearsal() -> bool:
    """Whether this release of torch can rehearse a step."""
    return TorchVersion(torch.__version__) >= _OLDEST_TORCH


def backward(tensors: Tensor, gradient: Tensor | None = None, *args: Any, **kwargs: Any) -> None:
    """In place of `torch.autograd.backward` of one scalar: the same operations in the same order, without hooks.

    What a node has saved is freed behind it, as the engine does, where nothing but the graph holds the node.
    """
    root = tensors.grad_fn
    assert root is not None
    with torch.no_grad():
        first = torch.ones_like(tensors) if gradient is None else gradient
        if not (tensors._is_view() or _needs_holder(root)):
            tensors.detach_()  # lets go of the graph
        walk = _Walk(root)
        walk.give(root, 0, first)
        del root, first
        walk.run()


class _Walk:
    """Nodes whose gradients are complete, latest first, and those that wait for more."""

    def __init__(self, root: Any) -> None:
        self.missing, self.order = _dependencies(root)
        self.ready: list[tuple[int, int, Any]] = []
        self.waiting: dict[int, tuple[Any, dict[int, Tensor], Any]] = {}
        self.missing[_key(root)] = 1

    def give(self, node: Any, number: int, gradient: Tensor | None, giver: Any = None) -> None:
        """One of the node's inputs, possibly None, from a node that holds it."""
        key = _key(node)
        _, gradients, _ = self.waiting.setdefault(key, (node, {}, giver if _needs_holder(node) else None))
        if gradient is not None:
            gradient = _fitting(gradient, node, number)
            gradients[number] = gradients[number] + gradient if number in gradients else gradient
        self.missing[key] -= 1
        if not self.missing[key]:
            heapq.heappush(self.ready, (-self.order[key], next(_NAMES), node))

    def run(self) -> None:
        """Call the nodes until none is ready."""
        while self.ready:
            _, _, node = heapq.heappop(self.ready)
            _, gradients, holder = self.waiting.pop(_key(node))
            if hasattr(node, "variable"):
                _accumulate(node.variable, gradients.get(0))
                continue
            edges, results = node.next_functions, _called(node, gradients)
            giver = (node, holder)
            del node, gradients, holder
            for i, (following, number) in enumerate(edges):
                if following is not None:
                    self.give(following, number, results[i], giver)
            del edges, results, giver
            following = None


def _dependencies(root: Any) -> tuple[Counter[int], dict[int, int]]:
    """How many nodes each node waits for, and its place in the engine's order, both by `_key`."""
    counts, order, stack = Counter[int](), {_key(root): _place(root)}, [root]
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is None:
                continue
            key = _key(following)
            counts[key] += 1
            if key not in order:
                order[key] = _place(following)
                stack.append(following)
    return counts, order


def _key(node: Any) -> int:
    """A number that a node keeps, while its Python object comes and goes."""
    if hasattr(node, "variable"):
        return -id(node.variable)
    return -id(node) if _is_own(node) else int(node._sequence_nr())


def _place(node: Any) -> int:
    return _LEAF if hasattr(node, "variable") else int(node._sequence_nr())


def _is_own(node: Any) -> bool:
    return isinstance(node, torch.autograd.function.BackwardCFunction)


def _needs_holder(node: Any) -> bool:
    return _is_own(node) and not _objects_keep_nodes()


@cache
def _objects_keep_nodes() -> bool:
    """Whether the object of an autograd.Function is of use without the graph; up to PyTorch 2.11 it is not."""
    with torch.enable_grad():
        node = _Same.apply(torch.ones((), requires_grad=True)).grad_fn
    try:
        return bool(node.next_functions)
    except RuntimeError:
        return False


class _Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


def _fitting(gradient: Tensor, node: Any, number: int) -> Tensor:
    """Sum over what was broadcast, and cast, as the engine does."""
    if hasattr(node, "variable"):
        shape, dtype = node.variable.shape, node.variable.dtype
    else:
        shape, dtype = (getattr(node._input_metadata[number], name) for name in ("shape", "dtype"))
    if gradient.shape != torch.Size(shape):
        gradient = gradient.sum_to_size(shape)
    return gradient.to(dtype) if gradient.dtype != dtype else gradient


def _called(node: Any, gradients: dict[int, Tensor]) -> list[Tensor | None]:
    given: Iterable[Tensor | None] = [gradients.get(i) for i in range(len(node._input_metadata))]
    results = node.apply(*given) if _is_own(node) else node(*given)
    return list(results) if isinstance(results, tuple) else [results]


def _accumulate(variable: Tensor, gradient: Tensor | None) -> None:
    if gradient is not None:
        variable.grad = gradient if variable.grad is None else variable.grad.add_(gradient)
