"""Numbers of the public StyleGAN implementations, see tests/golden/README.md, and how near results must be."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PATH = Path(__file__).parents[1] / "golden" / "stylegan_ops.npz"

# Of fp32 against their fp64, relative to the largest value; their own fp32 is off by up to 6.1e-7, 7.2e-7 and 1.4e-6,
# and by 5.6e-6 where an activation saturates.
FP32 = {"out": 2e-6, "grad": 3e-6, "second": 5e-6}
SATURATED = 5e-5


class Case(NamedTuple):
    name: str
    op: str
    kwargs: dict
    inputs: dict[str, list[int]]
    diff: list[str]
    zero: list[str]
    tol64: float

    def __str__(self) -> str:
        return self.name


@cache
def _file() -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(PATH) as file:
        return json.loads(file["index"].tobytes()), {k: file[k] for k in ("float64", "float32")}


def array(key: str) -> Tensor | None:
    """A stored array, None where it is not stored."""
    index, flat = _file()
    if key not in index["arrays"]:
        return None
    dtype, offset, shape = index["arrays"][key]
    return torch.from_numpy(flat[dtype][offset : offset + int(np.prod(shape))].reshape(shape).copy())


def cases(*ops: str) -> list[Case]:
    """Those of these ops without quirks of one implementation, see the README."""
    found = [e for e in _file()[0]["cases"] if e["op"] in ops and "quirk" not in e["case"]]
    return [
        Case(e["case"], e["op"], e["kwargs"], e["inputs"], e["diff"], e["zero"], e.get("tol64", 0.0)) for e in found
    ]


def inputs(case: Case, dtype: torch.dtype, fp32: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Arguments by name, those that get gradients as leaves; `fp32` names constants that stay in it."""
    made = {name: array(f"{case.name}/in/{name}") for name in case.inputs}
    made = {name: t if name in fp32 else t.to(dtype) for name, t in made.items()}
    return {name: t.requires_grad_(name in case.diff) for name, t in made.items()}


def check(case: Case, function: Callable[..., Tensor], dtype: torch.dtype, *, fp32: tuple = (), format=None) -> None:
    """Compare results and gradients of both orders; `format` lays out 4-d inputs."""
    given = inputs(case, dtype, fp32)
    if format is not None:
        laid = {n: t.detach().contiguous(memory_format=format) if t.ndim == 4 else t.detach() for n, t in given.items()}
        given = {n: t.requires_grad_(n in case.diff) for n, t in laid.items()}
    gout = array(f"{case.name}/gout").to(dtype).requires_grad_()
    out = function(**given, **case.kwargs)
    _close(case, "out", out, array(f"{case.name}/out"), dtype)
    leaves = {name: given[name] for name in case.diff}
    grads = torch.autograd.grad(out, leaves.values(), gout, create_graph=True, materialize_grads=True)
    for name, grad in zip(leaves, grads, strict=True):
        _close(case, f"grad/{name}", grad, array(f"{case.name}/grad/{name}"), dtype)
        direction = array(f"{case.name}/v/{name}")
        if direction is None or not grad.requires_grad:
            for other in (*leaves, "gout"):
                assert array(f"{case.name}/second/{name}/{other}") is None, f"{case}: no second order of {name}"
            continue
        to = {**leaves, "gout": gout}
        second = torch.autograd.grad(
            (grad * direction.to(dtype)).sum(), to.values(), retain_graph=True, materialize_grads=True
        )
        for other, value in zip(to, second, strict=True):
            key = f"second/{name}/{other}"
            _close(case, key, value, array(f"{case.name}/{key}"), dtype)


def _close(case: Case, key: str, actual: Tensor, expected: Tensor | None, dtype: torch.dtype) -> None:
    if expected is None:
        assert key in case.zero, f"{case} {key}: nothing is stored"
        assert not actual.any(), f"{case} {key}: must be zero"
        return
    order = key.partition("/")[0]
    tolerance = case.tol64
    if dtype == torch.float32:
        tolerance = max(tolerance, SATURATED if "_range_" in case.name and order == "second" else FP32[order])
    assert actual.shape == expected.shape, f"{case} {key}"
    error = (actual.double() - expected).abs().max().item() if expected.numel() else 0.0
    assert error <= tolerance * expected.abs().max().item(), f"{case} {key}: {error:.3g}"
