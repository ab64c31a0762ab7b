"""The device that a command runs on, and traffic with it that does not wait."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from pggan_fast.utils.errors import UserError

HAVE_FLOAT64 = ("cpu", "cuda", "meta")


def find_device(name: str) -> torch.device:
    """Return the device that `--device` names; under torchrun each process of a machine gets a GPU of its own.

    "auto" is cuda, else the CPU; any other device of torch (xpu, mps, ...) runs plain PyTorch's formulas when named.
    Raises UserError if this machine has none such.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name in ("cuda", "xpu") and "LOCAL_RANK" in os.environ:
        name = f"{name}:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError:  # torch would list all kinds that it has ever known
        raise UserError(f"--device {name}: cannot be used, must be auto, cpu, cuda, cuda:N, xpu or mps") from None
    try:
        torch.zeros(1, device=device).item()  # the meta device, for one, cannot
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--device {name}: cannot be used ({reason})") from error
    if device.type in ("cuda", "xpu"):
        torch.accelerator.set_device_index(device)
    return device


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for a few numbers that want more than fp32: fp64, but fp32 where a device may have none."""
    return torch.float64 if device.type in HAVE_FLOAT64 else torch.float32


def device_random_state(device: torch.device) -> Tensor | None:
    """Return the state of the device's default generator, None for the CPU, which has torch's."""
    if device.type in ("cpu", "meta"):
        return None
    module = torch.get_device_module(device)
    return module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)


def set_device_random_state(state: Tensor, device: torch.device) -> None:
    """Set what `device_random_state` returned."""
    module = torch.get_device_module(device)
    if device.type == "mps":  # which has one device
        module.set_rng_state(state)
    else:
        module.set_rng_state(state, device)


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
