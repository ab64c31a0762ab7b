"""Adam as progressive GANs use it: with beta1 = 0."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.adam import adam


class MomentumFreeAdam(Optimizer):
    """Adam (Kingma and Ba 2015) with betas (0, beta2), bit for bit what `torch.optim.Adam(fused=True)` makes of it.

    The first moment would be the gradient, so none is kept: half the state, in memory and in checkpoints. torch's
    kernel gets the gradient in its place, reads it once and writes back what it was.

    Args:
        parameters: of any shapes and layouts; a parameter without gradient is left alone.
        lr: 0-d fp32 tensor on their device, where a captured step reads it.
        beta2, eps: the official settings by default (PGGAN, appendix A.1).

    State of a parameter: "step" (0-d fp32, on its device) and "exp_avg_sq" (like the parameter).
    """

    def __init__(self, parameters: Iterable[Parameter], lr: Tensor, *, beta2: float = 0.99, eps: float = 1e-8):
        # fused: torch keeps a loaded "step" on the device of such optimizers.
        super().__init__(parameters, {"lr": lr, "betas": (0.0, beta2), "eps": eps, "fused": True})

    @torch.no_grad()
    def step(self, skipped: Tensor | None = None) -> None:
        """One update; none where `skipped` (0-d fp32 on the parameters' device) is 1, without asking the device."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                if p not in self.state:
                    self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
            gradients = [p.grad for p in parameters]
            beta1, beta2 = group["betas"]
            adam(
                parameters,
                gradients,
                gradients,
                [self.state[p]["exp_avg_sq"] for p in parameters],
                [],
                [self.state[p]["step"] for p in parameters],
                fused=True,
                found_inf=skipped,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=0.0,
                eps=group["eps"],
                maximize=False,
            )

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of this class, or of torch's fused Adam with beta1 = 0 and a tensor as rate.

        First moments are left out. Raises ValueError for another beta1, and for a state of other parameters.
        """
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        by_number = dict(zip(saved, own, strict=True))
        for number, kept in state_dict["state"].items():
            if number not in by_number or kept["exp_avg_sq"].shape != by_number[number].shape:
                raise ValueError(f"Adam's state of parameter {number} is of another shape")
        for group in state_dict["param_groups"]:
            if group["betas"][0] != 0:
                raise ValueError(f"betas are {tuple(group['betas'])}, the first must be 0")
        names = ("step", "exp_avg_sq")
        state = {p: {name: kept[name] for name in names} for p, kept in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": state})
