"""The precisions of a training step, and what half precision means on the device at hand."""

from __future__ import annotations

import torch

from pggan_fast.ops import narrow_cpu

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""{name: autocast's dtype, None for none}"""

AUTO = "auto"


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return a name of PRECISIONS: for "auto" bf16 where the device has instructions for it, else fp32.

    Raises ValueError for any other name.
    """
    if precision != AUTO:
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}, allowed: {', '.join((*PRECISIONS, AUTO))}")
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if device.type == "cpu" and not narrow_cpu.is_slow(torch.bfloat16) else "fp32"


def on_this_processor(precision: str) -> str | None:
    """Return one line on what half precision is worth on this CPU; None where it is as fast as it can be."""
    dtype = PRECISIONS[precision]
    if dtype is None or not narrow_cpu.is_slow(dtype):
        return None
    return (
        f"this processor has no instructions for {precision}: activations are stored in {precision}, which saves"
        " memory, and computed in fp32, so a step takes about as long as one in fp32"
    )
