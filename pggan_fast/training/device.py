"""The device that a command runs on."""

import torch

from pggan_fast.training.errors import UserError


def find_device(name: str) -> torch.device:
    """The device that `--device` names. Raises UserError if this machine has none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: cannot be used ({reason})") from error
    return device
