"""A CUDA device without a card: tensors on it have a shape, a type and a size, and no values.

What happens on the host happens for real. It shows before the first run on a card which tensors are of the wrong device
or type (torch refuses those), what the host waits for, and what the memory must hold.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from nnssl.core.pretended_backward import backward, check_torch

CARD = torch.device("cuda", 0)
_PACKAGES = ("nnssl", "nnunetv2", "nnssl_trainers")  # whose lines are named
_BLOCK = 512  # bytes: CUDA's allocator rounds up to them
_COUNTING = ("nonzero", "masked_select", "unique", "bincount", "repeat_interleave")  # the size of the result is data
Module = TypeVar("Module", bound=nn.Module)
aten: Any = torch.ops.aten


@dataclass(frozen=True)
class Remark:
    """Something that an operation does, and the line of the packages that causes it.

    Args:
        what: such as "copy to the host" or "float64".
        where: file and function, such as "methods/voco/loss.py code_terms".
        line: its number.
    """

    what: str
    where: str
    line: int

    def __str__(self) -> str:
        return f"{self.where}:{self.line} ({self.what})"


class PretendedCard(TorchDispatchMode):
    """Counts while it is active: `waits` of the host, `wide` results of float64, bytes and operations.

    A value that the host reads is 1, and as many entries of a mask are True as it has rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: list[Remark] = []
        self.wide: list[Remark] = []
        self.flop = 0
        self.bytes = self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        self._pinned: weakref.WeakSet[Any] = weakref.WeakSet()
        # Storage, kept alive since another one could get its address, and version of the values that were read last.
        self._read: tuple[torch.UntypedStorage, int] | None = None

    def begin(self) -> None:
        """Count from here; what is alive stays counted in the peak."""
        self.waits, self.wide, self.flop, self.peak_bytes, self._read = [], [], 0, self.bytes, None

    def take(self, module: Module) -> Module:
        """A copy of a module with all parameters and buffers on the card; constants that are neither stay behind."""
        memo: dict[int, Any] = {}
        for parameter in module.parameters():
            memo[id(parameter)] = nn.Parameter(self.empty_like(parameter), parameter.requires_grad)
        for buffer in module.buffers():
            memo[id(buffer)] = self.empty_like(buffer)
        with _disable_current_modes():
            return copy.deepcopy(module, memo)

    def empty_like(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor on the card of the same shape and strides."""
        with self.fake:
            result = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype or tensor.dtype, device=CARD)
        self._count(result)
        return result

    def pin(self, batch: Mapping[str, Tensor]) -> None:
        """Take tensors for pinned, as those of the loader are."""
        self._pinned.update(tensor.untyped_storage() for tensor in batch.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on the host, or its shapes on the card."""
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_card = any(isinstance(x, FakeTensor) for x in tensors)
        target = kwargs.get("device")
        if not on_card and (target is None or torch.device(target).type != "cuda"):
            return self._on_host(func, args, kwargs)
        packet = func.overloadpacket
        if packet in (aten._to_copy, aten.copy_):
            result = self._copied(packet, func, args, kwargs)
        else:
            self._look(packet, args, [x for x in tensors if not isinstance(x, FakeTensor)])
            result = self._computed(packet, func, args, kwargs)
        for output in tree_leaves(result):
            if isinstance(output, FakeTensor) and output.device.type == "cuda":
                self._count(output)
        return result

    def _on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        pinned = kwargs.pop("pin_memory", False)
        with _disable_current_modes():
            result = func(*args, **kwargs)
        if pinned:
            self._pinned.add(result.untyped_storage())
        return result

    def _copied(self, packet: Any, func: Any, args: Any, kwargs: Any) -> Any:
        source, target = (args[0], None) if packet is aten._to_copy else (args[1], args[0])
        device = target.device if target is not None else torch.device(kwargs.get("device") or source.device)
        freely = bool(kwargs.get("non_blocking", args[2] if target is not None and len(args) > 2 else False))
        dtype = kwargs.get("dtype") or source.dtype
        if isinstance(source, FakeTensor) and device.type == "cuda":
            return func(*args, **kwargs)
        if isinstance(source, FakeTensor):
            if not freely or (target is not None and target.untyped_storage() not in self._pinned):
                self._wait("copy to the host")
            with _disable_current_modes():
                result = torch.ones(source.shape, dtype=dtype) if target is None else target.fill_(1)
                self._pinned.add(result.untyped_storage())
            return result
        if source.dim() or target is None:  # a kernel takes a number of the host as its argument
            if not freely:
                self._wait("blocking copy from the host")
            elif source.untyped_storage() not in self._pinned:
                self._wait("copy from pageable memory")
        return self.empty_like(source, dtype) if target is None else target

    def _look(self, packet: Any, args: Any, hosts: list[Tensor]) -> None:
        """Remark on what a computation makes the host wait for."""
        name = str(packet).removeprefix("aten.")
        if packet is aten._local_scalar_dense:
            values, version = args[0].untyped_storage(), args[0]._version
            last, its_version = self._read or (None, None)
            if last is None or (last._cdata, its_version) != (values._cdata, version):  # entries are read together
                self._wait("value read")
            self._read = (values, version)
        elif name in _COUNTING or packet is aten.equal or self._picks(packet, args):
            self._wait(name)
        elif any(x.dim() for x in hosts):
            self._wait(f"tensor of the host in {name}")

    def _picks(self, packet: Any, args: Any) -> bool:
        """Whether it takes entries by a mask, whose number the host must know."""
        if packet not in (aten.index, aten.index_put, aten.index_put_):
            return False
        masked = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        return masked and not (len(args) > 2 and args[2].numel() == 1)

    def _computed(self, packet: Any, func: Any, args: Any, kwargs: Any) -> Any:
        if packet is aten._local_scalar_dense:
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if packet is aten.nonzero:
            return self.fake_empty((len(args[0]), args[0].dim()), torch.int64)
        if packet is aten.equal:
            return True
        if packet is aten._fused_sgd_:  # in place, and torch has no kernel of it for fake tensors
            return None
        if packet is aten.index and self._picks(packet, args):
            args = (args[0], [self._places(x) for x in args[1]])
        result = func(*args, **kwargs)
        if packet in flop_registry:
            self.flop += int(flop_registry[packet](*args, **kwargs, out_val=result))
        return result

    def _places(self, index: Tensor | None) -> Tensor | None:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return index
        return self.fake_empty((len(index),), torch.int64)

    def fake_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uncounted tensor on the card."""
        with self.fake:
            return torch.empty(shape, dtype=dtype, device=CARD)

    def _wait(self, what: str) -> None:
        self.waits.append(Remark(what, *_caller()))

    def _count(self, tensor: Tensor) -> None:
        """Count a tensor's memory, once for all views, and until it is freed."""
        if tensor.dtype == torch.float64:
            self.wide.append(Remark("float64", *_caller()))
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // _BLOCK) * _BLOCK
        if key in self._sizes:
            return
        self._sizes[key] = size
        self.bytes += size
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)


def _caller() -> tuple[str, int]:
    """The innermost line of the packages."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        package = next((name for name in _PACKAGES if name in parts[:-1]), None)
        if package and frame.f_code.co_filename != __file__:
            inside = parts[len(parts) - parts[::-1].index(package) :]
            return f"{'/'.join(inside)} {frame.f_code.co_name}", frame.f_lineno
        frame = frame.f_back
    return "elsewhere", 0


class _Generator(torch.Generator):
    """A generator of the host, whatever its device: nothing is drawn."""

    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """In place of `scaled_dot_product_attention`, which without a card takes the kernel that keeps the whole matrix."""
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    batch = query.shape[:-2]
    q, k, v = (x.to(dtype).reshape(-1, batch[-1], *x.shape[-2:]) for x in (query, key, value))
    bias = attn_mask
    if bias is not None:
        bias = (torch.zeros_like(bias, dtype=dtype) if bias.dtype == torch.bool else bias.to(dtype)).expand(
            *batch, q.shape[-2], k.shape[-2]
        )
        bias = bias.reshape(*q.shape[:3], k.shape[-2]) if len(batch) != 2 else bias
    fused = aten._scaled_dot_product_efficient_attention
    result: Tensor = fused(q, k, v, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]
    return result.reshape(*batch, *result.shape[-2:])


class _Event:
    """A moment that has come."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, *args: Any) -> None:
        """Nothing to mark."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """It has come."""
        return True


@contextlib.contextmanager
def pretended_card() -> Iterator[PretendedCard]:
    """The device "cuda" is pretended inside, whether the machine has one or not.

    This process is alone there: other processes do not know of it, and would wait for it or hand it their numbers.

    Raises:
        TorchTooOld: this release of torch cannot pretend one.
    """
    check_torch()
    card = PretendedCard()

    def pin(tensor: Tensor, device: Any = None) -> Tensor:
        card.pin({"": tensor})
        return tensor

    kinds = [torch.Tensor, nn.Parameter, FakeTensor]
    with (
        patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        patch("torch.cuda.is_bf16_supported", lambda *args, **kwargs: True),
        patch("torch.cuda.Event", _Event),
        patch("torch.distributed.is_initialized", lambda: False),
        patch("torch.Generator", _Generator),
        patch("torch.autograd.backward", backward),
        patch("torch.nn.functional.scaled_dot_product_attention", _attention),
        patch("torch._C._current_graph_task_id", lambda: 0),  # checkpoints compute again once a pass
        patch.object(torch.Tensor, "pin_memory", pin),
        patch.object(sys.modules["torch.optim.optimizer"], "_foreach_supported_types", kinds),  # not in torch.optim
        patch("torch.utils._foreach_utils._foreach_supported_types", kinds),
        card.fake,
        card,
    ):
        yield card
