"""The job of the two processes in test_distributed.py. Started by torchrun: FOLDER.

Each network is wrapped as it is and accelerated, in the same way, and trained for two steps; how far the two are apart,
and how often fused ops ran, goes to FOLDER/rank.json.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from pggan_fast import accelerate, restore
from tests.dropin.helpers import always_fuse, calls, tensors
from tests.dropin.model_zoo import ZOO, inputs_of, network


def sharded(model: nn.Module) -> nn.Module:
    for child in model.children():
        if not isinstance(child, nn.ModuleList) and list(child.parameters()):
            fully_shard(child)
    return fully_shard(model)


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": partial(DistributedDataParallel, find_unused_parameters=True),
    "fsdp2": sharded,
    "fsdp1": partial(FullyShardedDataParallel, use_orig_params=True, device_id=torch.device("cpu")),
}
NETWORKS = ("pggan_generator", "pggan_discriminator", "stackgan")


def trained(model: nn.Module, inputs: tuple[Tensor, ...], penalty: bool) -> dict[str, Tensor]:
    """Outputs, gradients and weights of two steps of Adam; `penalty`: with one on the inputs' gradients."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.0, 0.99))
    inputs = tuple(t.clone().requires_grad_(penalty) for t in inputs)
    found = {}
    for step in range(2):
        optimizer.zero_grad()
        outputs = tensors(model(*inputs))
        loss = sum(t.square().mean() for t in outputs)
        if penalty:
            (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
            loss = loss + gradient.square().sum()
        loss.backward()
        optimizer.step()
        found |= {f"output {i} of step {step}": t.detach().clone() for i, t in enumerate(outputs)}
        for name, p in model.named_parameters():
            found[f"{name} after step {step}"] = whole(p)
            found[f"gradient of {name} in step {step}"] = torch.zeros(1) if p.grad is None else whole(p.grad)
    return found


def whole(t: Tensor) -> Tensor:
    return (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone()


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    return max(((a[k] - b[k]).abs().max() / b[k].abs().max().clamp_min(1)).item() for k in b if b[k].numel())


def compare(how: str, name: str, rank: int) -> dict[str, float]:
    inputs = tuple(t * (1 + rank) for t in inputs_of(ZOO[name], torch.float64))
    plain, fast = WRAPS[how](network(name).double()), WRAPS[how](accelerate(network(name).double()))
    penalty = how == "ddp" and "discriminator" in name
    expected = trained(plain, inputs, penalty)
    with pytest.MonkeyPatch.context() as patches:
        called = calls(patches)
        error = difference(trained(fast, inputs, penalty), expected)
        count = len(called)
        after = difference(trained(restore(fast), inputs, False), trained(plain, inputs, False))
        return {"difference": error, "fused calls": count, "restored": after, "later calls": len(called) - count}


def main() -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    with pytest.MonkeyPatch.context() as patches:
        always_fuse(patches)
        found = {how: {name: compare(how, name, rank) for name in NETWORKS} for how in WRAPS}
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
