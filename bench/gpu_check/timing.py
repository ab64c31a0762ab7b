"""Speed: whole steps, convolutions by direction, ops over tensors past the L2 cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from bench.baseline import eager
from bench.baseline.matched_networks import baseline
from bench.gpu_check.findings import DEVICE, REHEARSAL, Part, milliseconds, set_precision, synchronize
from bench.gpu_check.workload import SMALL, images, networks
from bench.harness.cases import op_case
from bench.harness.table import MAIN, OTHERS, Op
from pggan_fast import use_impl
from pggan_fast.training import TrainStep
from pggan_fast.training.runtime.cuda_graph import CUDAGraphStep, CudaRecorder

SIZES = ((8, 4),) if REHEARSAL else ((64, 32), (256, 8), (1024, 4))  # px, batch
BEYOND_L2 = (2, 8, 16, 16) if REHEARSAL else (2, 64, 512, 512)  # 134 MB in fp32
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


def steps(part: Part) -> None:
    """Time whole training steps: ours, in a graph, in Triton, and eager PyTorch, as it is and under max-autotune."""
    variants = ("ours", "ours in a graph", "ours in Triton", "eager", "eager max-autotune")
    for resolution, batch in SIZES:
        for kind in ("bf16", "tf32", "exact"):
            for variant in variants[:4] if REHEARSAL or kind == "exact" else variants:

                def work(resolution=resolution, batch=batch, kind=kind, variant=variant):
                    return _step(part, resolution, batch, kind, variant)

                part.look(f"{resolution} px x {batch} {kind} {variant}", work)
                if DEVICE == "cuda":
                    torch.cuda.empty_cache()


def _step(part: Part, resolution: int, batch: int, kind: str, variant: str) -> dict[str, float]:
    G, D = networks(resolution)
    real = images(batch, resolution).to(DEVICE)
    if variant.startswith("eager"):
        set_precision(kind)
        pair = baseline(G, D, torch.channels_last, **SMALL)
        if "max-autotune" in variant:
            for network in pair:
                network.compile(mode="max-autotune-no-cudagraphs")
        step = eager.TrainStep(*pair, torch.bfloat16 if kind == "bf16" else None)
    else:
        step = TrainStep(G, D, precision=set_precision(kind))
    torch.backends.cudnn.benchmark = True
    in_graph = "graph" in variant and DEVICE == "cuda"
    call = CUDAGraphStep(step, CudaRecorder()) if in_graph else step
    with use_impl("triton" if "Triton" in variant and DEVICE == "cuda" else "auto"):
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(4):
            call(real)
        ms = milliseconds(lambda: call(real), 1.0)
        found = {"ms": round(ms, 2), "seconds_per_kimg": round(ms / batch, 3)}
        if DEVICE == "cuda":
            found["peak_mib"] = torch.cuda.max_memory_allocated() >> 20
            if not in_graph:
                found["launches"] = _launches(part, lambda: call(real), f"{resolution}-{kind}-{variant}")
    return found


def _launches(part: Part, work: Callable[[], object], name: str) -> int:
    """Return the number of launches, and leave the profile's first rows beside the results."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
        synchronize()
    rows = seen.key_averages()
    table = rows.table(sort_by="self_device_time_total", row_limit=30, max_name_column_width=70)
    (part.out / f"profile-{name.replace(' ', '-')}.txt").write_text(table, encoding="utf-8")
    return sum(row.count for row in rows if row.key in LAUNCHES)


def convolutions(part: Part) -> None:
    """Time the paper's convolutions in three directions: our launch against cuDNN and bias_act."""
    if DEVICE != "cuda":
        part.look("all", lambda: {"skipped": "cuDNN runs on a GPU alone"})
        return
    from pggan_fast.kernels.tune import contenders, default_tile, is_modelled_faster, problems

    set_precision("tf32")
    torch.backends.cudnn.benchmark = True
    for dtype in (torch.bfloat16, torch.float32):
        for problem in problems(dtype, 4):

            def work(problem=problem):
                fused, split = contenders(problem)
                tile = default_tile(problem)
                ours, cudnn = milliseconds(lambda: fused(tile), 0.1), milliseconds(split, 0.1)
                return {
                    "fused_us": round(1e3 * ours, 1),
                    "cudnn_us": round(1e3 * cudnn, 1),
                    "speedup": round(cudnn / ours, 2),
                    "model_fuses": is_modelled_faster(problem),
                    "tflops": round(problem.operations / ours / 1e9, 1),
                }

            part.look(problem.key, work)


def memory_bound(part: Part) -> None:
    """Time each op beside a copy of the bytes that it must move, and beside eager and torch.compile."""
    set_precision("exact")
    for op in [op for op in (*MAIN, *OTHERS) if op.moved]:
        for dtype in op.dtypes:
            for layout in ("channels_last", "nchw") if "bias" in op.name else ("channels_last",):
                for passes in op.passes:
                    work = lambda op=op, dtype=dtype, layout=layout, passes=passes: _op(op, dtype, layout, passes)  # noqa: E731
                    part.look(f"{op.name} {dtype} {layout} {passes}", work)


def _op(op: Op, dtype: str, layout: str, passes: str) -> dict[str, float]:
    compiled = not REHEARSAL and dtype == "fp32" and layout == "channels_last"
    case = op_case(op, BEYOND_L2, dtype, layout, passes, compiled=compiled, copied=True, device=DEVICE)
    case.check()  # no figure for a wrong result
    times = {}
    for name, variant in case.variants.items():
        calls = iter(range(1 << 30))
        # Eight calls on inputs in turn, so that no launch finds its own in a cache.
        work = lambda variant=variant, calls=calls: [variant(next(calls) % case.input_sets) for _ in range(8)]  # noqa: E731
        times[name] = milliseconds(work, 0.1) / 8
    found = {f"{name}_us": round(1e3 * ms, 1) for name, ms in times.items()}
    if "copy" in times:
        found["copy_tb_per_s"] = round(case.moved_bytes / times["copy"] / 1e9, 2)
        shares = {f"share_of_copy_{name}": round(times["copy"] / ms, 2) for name, ms in times.items()}
        found |= {name: share for name, share in shares.items() if "ours" in name}
    return found
