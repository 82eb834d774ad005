"""A backward pass without PyTorch's engine, which needs a driver for tensors that say that they are on a card."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_LEAF = 2**63  # sequence numbers of leaves, which come first, as in the engine
_NAMES = itertools.count(1)


def backward(tensors: Tensor, gradient: Tensor | None = None, *args: Any, **kwargs: Any) -> None:
    """In place of `torch.autograd.backward` of one scalar: the same operations in the same order, without hooks.

    What a node has saved is freed behind it, as the engine does, where nothing but the graph holds the node.
    """
    root = tensors.grad_fn
    assert root is not None
    with torch.no_grad():
        first = torch.ones_like(tensors) if gradient is None else gradient
        if not tensors._is_view():
            tensors.detach_()  # lets go of the graph
        walk = _Walk(root)
        walk.give(root, 0, first)
        del root, first
        walk.run()


class _Walk:
    """Nodes whose gradients are complete, latest first, and those that wait for more."""

    def __init__(self, root: Any) -> None:
        self.missing = _dependencies(root)
        self.ready: list[tuple[int, int, Any]] = []
        self.waiting: dict[int, tuple[Any, dict[int, Tensor]]] = {}
        self.missing[_key(root)] = 1

    def give(self, node: Any, number: int, gradient: Tensor | None) -> None:
        """One of the node's inputs, possibly None."""
        key = _key(node)
        _, gradients = self.waiting.setdefault(key, (node, {}))
        if gradient is not None:
            gradient = _fitting(gradient, node, number)
            gradients[number] = gradients[number] + gradient if number in gradients else gradient
        self.missing[key] -= 1
        if not self.missing[key]:
            heapq.heappush(self.ready, (-_order(node), next(_NAMES), node))

    def run(self) -> None:
        """Call the nodes until none is ready."""
        while self.ready:
            _, _, node = heapq.heappop(self.ready)
            _, gradients = self.waiting.pop(_key(node))
            if hasattr(node, "variable"):
                _accumulate(node.variable, gradients.get(0))
                continue
            edges, results = node.next_functions, _called(node, gradients)
            del node, gradients
            for i, (following, number) in enumerate(edges):
                if following is not None:
                    self.give(following, number, results[i])
            del edges, results
            following = None


def _dependencies(root: Any) -> Counter[int]:
    counts, seen, stack = Counter[int](), {_key(root)}, [root]
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is None:
                continue
            counts[_key(following)] += 1
            if _key(following) not in seen:
                seen.add(_key(following))
                stack.append(following)
    return counts


def _key(node: Any) -> int:
    """A number that a node keeps, while its Python object comes and goes."""
    return -id(node.variable) if hasattr(node, "variable") else int(node._sequence_nr())


def _order(node: Any) -> int:
    return _LEAF if hasattr(node, "variable") else int(node._sequence_nr())


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
    own = isinstance(node, torch.autograd.function.BackwardCFunction)
    results = node.apply(*given) if own else node(*given)
    return list(results) if isinstance(results, tuple) else [results]


def _accumulate(variable: Tensor, gradient: Tensor | None) -> None:
    if gradient is not None:
        variable.grad = gradient if variable.grad is None else variable.grad.add_(gradient)
