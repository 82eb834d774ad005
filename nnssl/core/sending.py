"""Numbers between the host and a card, without a wait: from and to pinned memory, while the card computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnssl.core.batch_memory import Place, place_after, tensor_at


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of tensors of the host on a card, in one transfer; on a CPU the tensors themselves."""
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    return unpack(pack(tensors, pinned=True).to(device, non_blocking=True), tensors)


def pack(tensors: Sequence[Tensor], pinned: bool = False) -> Tensor:
    """Copy tensors of the host, each aligned, into one of bytes."""
    places = _places(tensors)
    packed = torch.empty(places[-1].stop if places else 0, dtype=torch.uint8, pin_memory=pinned)
    for tensor, place in zip(tensors, places, strict=True):
        tensor_at(packed, place).copy_(tensor)
    return packed


def unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of what `pack` made of tensors of these shapes and types."""
    return [tensor_at(packed, place) for place in _places(like)]


def _places(tensors: Sequence[Tensor]) -> list[Place]:
    places: list[Place] = []
    for tensor in tensors:
        places.append(place_after(places[-1].stop if places else 0, tensor.dtype, tensor.shape))
    return places


class Arrival:
    """A copy of a tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> Tensor:
        """The copy on the host; waits only for what was launched before it was ordered."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
