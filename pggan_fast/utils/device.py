"""The device that a command runs on, and traffic with it that does not wait."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from pggan_fast.utils.errors import UserError


def find_device(name: str) -> torch.device:
    """Return the device that `--device` names; under torchrun each process of a machine gets a GPU of its own.

    Raises UserError if this machine has none such.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the meta device, for one, cannot
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--device {name}: cannot be used ({reason})") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on `device`; neither side waits for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class AsyncScalar:
    """A number that lives on the device, read without waiting for it: as it was one or more readings ago."""

    def __init__(self, source: Tensor) -> None:
        self._source = source
        self._copy = torch.zeros_like(source, device="cpu", pin_memory=source.is_cuda)

    def read(self) -> int:
        """Return the value as it was at the last reading, and start the next."""
        value = int(self._copy)
        self._copy.copy_(self._source, non_blocking=True)
        return value
