"""Adam as progressive GANs use it: with beta1 = 0 no first moment is kept, and settings may live on the device."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.adam import adam

from pggan_fast.utils.device import wide_dtype

EPS_PLACES = ("corrected", "uncorrected")


def one_minus_power(beta: Tensor, counts: Tensor) -> Tensor:
    """Return 1 - beta ** counts, exact where it is small, in fp64 where the device has it; beta [], counts [N]."""
    if wide_dtype(counts.device) == torch.float64:
        return 1 - beta.double() ** counts
    return -torch.expm1(counts * beta.log())  # 1 - 0.999 in fp32 would keep four digits


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), bit for bit what `torch.optim.Adam(fused=True)` makes of it.

    With beta1 = 0 the first moment would be the gradient, so none is kept: half the state, in memory and in
    checkpoints. torch's kernel gets the gradient in its place, reads it once and writes back what it was.

    Args:
        parameters: of any shapes and layouts; a parameter without gradient is left alone.
        lr: 0-d fp32 tensor on their device, where a captured step reads it.
        beta1, beta2, eps: the official settings by default (PGGAN, appendix A.1). beta2 may be a 0-d fp32 tensor on
            the parameters' device, which may change from step to step; the bias is corrected with its present value.
        eps_place: what eps is added to: the "corrected" root of the second moment, as torch does, or the "uncorrected"
            one, as TensorFlow's Adam and so the official code do ("epsilon hat" in the paper, section 2).

    A tensor for beta2, and "uncorrected", take a composite of torch's foreach kernels instead of the fused kernel.
    State of a parameter: "step" (0-d fp32, on its device), "exp_avg_sq" (like the parameter) and, unless beta1 is 0,
    "exp_avg".
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: Tensor,
        *,
        beta1: float = 0.0,
        beta2: float | Tensor = 0.99,
        eps: float = 1e-8,
        eps_place: str = "corrected",
    ):
        if eps_place not in EPS_PLACES:
            raise ValueError(f"eps_place is {eps_place!r}, allowed: {', '.join(EPS_PLACES)}")
        self.eps_place = eps_place
        # fused: torch keeps a loaded "step" on the device of such optimizers.
        super().__init__(parameters, {"lr": lr, "betas": (beta1, beta2), "eps": eps, "fused": True})

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters that it updates."""
        return [p for group in self.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Return the state with betas as numbers, wherever they are kept."""
        state = super().state_dict()
        groups = [{**group, "betas": tuple(float(beta) for beta in group["betas"])} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    @torch.no_grad()
    def step(self, skipped: Tensor | None = None) -> None:
        """Update once; not where `skipped` (0-d fp32 on the parameters' device) is 1, without asking the device."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            beta1, beta2 = group["betas"]
            names = ["exp_avg_sq"] if beta1 == 0 else ["exp_avg_sq", "exp_avg"]
            for p in parameters:
                if p not in self.state:
                    self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                    for name in names:
                        self.state[p][name] = torch.zeros_like(p)
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            moments = [[self.state[p][name] for p in parameters] for name in names]
            steps = [self.state[p]["step"] for p in parameters]
            if isinstance(beta2, Tensor) or self.eps_place == "uncorrected":
                self._composite(group, parameters, gradients, moments, steps, skipped)
                continue
            adam(
                parameters,
                gradients,
                gradients if beta1 == 0 else moments[1],
                moments[0],
                [],
                steps,
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

    def _composite(
        self,
        group: dict,
        parameters: list[Tensor],
        gradients: list[Tensor],
        moments: list[list[Tensor]],
        steps: list[Tensor],
        skipped: Tensor | None,
    ) -> None:
        """Update by torch's foreach kernels, every setting read from the device.

        A step that is skipped has gradients of 0, a rate of 0 and betas of 1, so that nothing changes.
        """
        # Overloads by name: without it a 0-d tensor is taken for a number, which reads it.
        mul_, add_ = torch.ops.aten._foreach_mul_.Tensor, torch.ops.aten._foreach_add_.Tensor
        (beta1, beta2), lr, eps = group["betas"], group["lr"], group["eps"]
        keep = torch.ones((), device=steps[0].device) if skipped is None else 1 - skipped
        beta1, beta2 = (
            beta if isinstance(beta, Tensor) else torch.full((), beta, device=keep.device) for beta in (beta1, beta2)
        )
        if skipped is not None:
            gradients = [torch.where(keep > 0, gradient, 0) for gradient in gradients]
        add_(steps, keep)
        counts = torch.stack(steps)  # [parameters]
        first, second = (
            torch.where(keep > 0, beta, 1.0) if skipped is not None else beta for beta in (beta1, beta2)
        )  # [] each
        squares = torch._foreach_mul(gradients, gradients)
        mul_(squares, 1 - second)
        mul_(moments[0], second)
        torch._foreach_add_(moments[0], squares)
        if len(moments) > 1:
            mul_(moments[1], first)
            gradients = torch._foreach_mul(gradients, 1.0)
            mul_(gradients, 1 - first)
            torch._foreach_add_(moments[1], gradients)
            gradients = moments[1]
        # A parameter whose first step is skipped has a count of 0: 1 stands for its correction, of moments that are 0.
        correction1, correction2 = (
            torch.where(counts > 0, one_minus_power(beta, counts), 1.0) for beta in (beta1, beta2)
        )  # [parameters] each
        root2 = correction2.sqrt()
        rates = lr * keep / correction1
        roots = torch._foreach_sqrt(moments[0])
        if self.eps_place == "corrected":
            torch._foreach_div_(roots, list(root2.to(lr.dtype).unbind()))
        else:
            rates = rates * root2
        torch._foreach_add_(roots, eps)
        updates = torch._foreach_div(gradients, roots)
        torch._foreach_mul_(updates, list(rates.to(lr.dtype).unbind()))
        torch._foreach_sub_(parameters, updates)

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of this class, or of torch's fused Adam with the same beta1 and a tensor as rate.

        First moments are left out if beta1 is 0. Raises ValueError for another beta1, and for a state of other
        parameters.
        """
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        by_number = dict(zip(saved, own, strict=True))
        beta1 = self.param_groups[0]["betas"][0]
        names = ("step", "exp_avg_sq") if beta1 == 0 else ("step", "exp_avg_sq", "exp_avg")
        for group in state_dict["param_groups"]:
            if group["betas"][0] != beta1:
                raise ValueError(f"betas are {tuple(group['betas'])}, the first must be {beta1:g}")
        for number, kept in state_dict["state"].items():
            for name in names[1:]:
                if number not in by_number or name not in kept or kept[name].shape != by_number[number].shape:
                    raise ValueError(f"Adam's state of parameter {number} is of another shape")
        state = {p: {name: kept[name] for name in names} for p, kept in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": state})


MomentumFreeAdam = Adam
