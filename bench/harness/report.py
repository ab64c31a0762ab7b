"""Results as JSON and Markdown, and docs/benchmarks.md out of them.

    python -m bench.harness.report RESULT.json ... --docs docs/benchmarks.md

Of several results the later ones replace what they measured again.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from bench.harness.targets import TARGETS
from bench.traffic import report

KEY = ("suite", "shape", "dtype", "layout", "pass")
FINDINGS = ("suite", "ours", "compared with", "worst", "median", "best", "cases")
SHOWN_IN_FINDINGS = ("eager", "eager_nchw_fp32", "eager_channels_last_fp32", "pro_gan_pth", "numpy", "scipy", "step")

METHOD = """\
## How it was measured

This page is written by `python -m bench.harness.report` from what `make bench` measured, which also prints for every
target whether it is reached (`bench/harness/targets.py`). The baseline is `bench/baseline/eager.py`: idiomatic PyTorch,
which pggan_fast does not touch. All variants of a case run interleaved in one process,
every round starting with another one and every variant on other inputs than the one before it; malloc's
thresholds are raised for all alike, so that memory is warm; a speed-up is the median of the rounds' ratios.
Before a case is timed, outputs and gradients must agree (of the training step: two steps' losses, the first's
gradients).

Shapes are those of the large side: conv2d_up makes it, conv2d_down starts from it, with as many channels on the
small side. "forward" records no graph, "forward+backward" takes the gradients of every input, weights and biases
included. In the training step, as published ports have it, the baseline's D keeps requiring gradients while G is
trained, and its Adam is torch's default.
"""

EXPECTED = """\
## Expected on a GPU: modelled, not measured

No GPU has run any of this. By bytes and by operations at an {gpu}'s rates, the larger of the two times for each
launch, the forward of both networks' layers with at most {channels} channels, at 256 to 1024 px, would take {half:.1f}
times as long in plain PyTorch as in the fused Triton convolution in fp16, and {single:.1f} times in fp32;
[kernels.md](kernels.md) has the times layer by layer. The counts of launches and bytes of a whole training step above
are exact, what they are worth in time is not known. `make gpu-check` measures everything on a GPU.
"""


def new_path(folder: Path, result: dict) -> Path:
    """A path in the folder that names device and date."""
    date = result["machine"]["date"].replace(" UTC", "").replace(":", "").replace(" ", "-")
    return folder / f"{result['machine']['device']}-{date}.json"


def write(result: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(
        f"# Results of {result['machine']['date']}\n\n{overview(result)}\n\n"
        f"## Targets\n\n{targets_table(result['records'])}\n\n"
        f"## Every case\n\n{cases_table(result['records'])}\n",
        encoding="utf-8",
    )


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def overview(result: dict) -> str:
    """Results first, then the method, the machine, and the speed-ups of each suite."""
    records = result["records"]
    machine = [[name.replace("_", " "), value] for name, value in result["machine"].items()]
    parts = ["## What was found", findings_table(records), METHOD.rstrip(), table(["", ""], machine)]
    by_suite: dict[str, list[dict]] = {}
    for record in records:
        by_suite.setdefault(record["suite"], []).append(record)
    parts += [suite_section(suite, members) for suite, members in by_suite.items()]
    parts += ["## Where it loses", losses_list(records)]
    return "\n\n".join(parts)


def findings_table(records: list[dict]) -> str:
    """Speed-ups by suite, over the most telling of what it was compared with, from the worst to the best case."""
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        for ours, others in record["speedups"].items():
            for other in SHOWN_IN_FINDINGS:
                if other in others:
                    ratios.setdefault((record["suite"], ours, other), []).append(others[other]["median"])
    rows = [
        [suite, ours.replace("_", " "), other.replace("_", " "), *map("{:.2f}".format, spread_of(found)), len(found)]
        for (suite, ours, other), found in ratios.items()
    ]
    note = "Times as fast (of memory, launches and bytes: times as few), by suite; below 1 is slower."
    return f"{note}\n\n{table(FINDINGS, rows)}\n\n{missed_targets(records)}"


def missed_targets(records: list[dict]) -> str:
    """Name the targets that are not reached in every case."""
    missed = []
    for target in TARGETS:
        reached = [speedup for _, speedup in target.reached(records)]
        if reached and min(reached) < target.speedup:
            missed.append(f"- {target.text}: {min(reached):.2f} in the worst of {len(reached)} cases")
    return "\n".join(
        ["Targets that are not reached in every case:", "", *missed] if missed else ["Every target is reached."]
    )


def spread_of(values: list[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def targets_table(records: list[dict]) -> str:
    """Whether each target is reached: the worst case counts; 0.71 over a copy is 1.4 copies' time."""
    rows = []
    for target in TARGETS:
        reached = [speedup for _, speedup in target.reached(records)]
        if not reached:
            rows.append([target.text, f"{target.speedup:.2f}", "not measured", "", ""])
            continue
        good = sum(speedup >= target.speedup for speedup in reached)
        verdict = "yes" if good == len(reached) else "no"
        rows.append([target.text, f"{target.speedup:.2f}", f"{min(reached):.2f}", f"{good} of {len(reached)}", verdict])
    return table(["target", "asked", "worst", "cases that reach it", "reached"], rows)


def suite_section(suite: str, records: list[dict]) -> str:
    if suite == "step" or suite.startswith(("third-party", "D step")):
        return f"## {'Training step' if suite == 'step' else suite.capitalize()}\n\n{step_table(records)}"
    if suite == "peak memory":
        return "## Most memory that a training step holds, above weights and optimizer\n\n" + peak_table(records)
    if suite.startswith("traffic"):
        unit = ", GB" if suite == "traffic bytes" else ""
        title = f"## Counted on meta tensors, not timed: {suite} of a training step{unit}"
        note = f"{report.NOTE}\n\n" if suite == "traffic bytes" else ""
        return f"{title}\n\n{note}{table(*report.rows(records))}"
    if suite.startswith("memory"):
        return f"## Kept for backward: {suite.removeprefix('memory ')}\n\n" + memory_table(records)
    parts = [f"## {suite}"]
    if any("eager" in record["seconds"] for record in records):
        parts += ["Times as fast as eager:", pivot(records, "eager", "{:.2f}")]
    for library in ("numpy", "scipy"):
        if any(library in record["seconds"] for record in records):
            parts += [f"Times as fast as {library}:", pivot(records, library, "{:.2f}")]
    if any("step" in record["seconds"] for record in records):
        parts += ["How many times as long a step takes as the wait for its batch:", pivot(records, "step", "{:,.0f}")]
    if any("compile" in record["seconds"] for record in records):
        parts += ["Times as fast as torch.compile of eager:", pivot(records, "compile", "{:.2f}")]
    if any("copy" in record["seconds"] for record in records):
        parts += ["Share of a copy's bandwidth:", pivot(records, "copy", "{:.0%}")]
    return "\n\n".join(parts)


def pivot(records: list[dict], other: str, style: str) -> str:
    """Speed-ups over another provider: a row per shape, a column per dtype, layout and pass."""
    cells = {
        (r["shape"], (r["dtype"], r["layout"], r["pass"])): r["speedups"]["ours"][other]["median"]
        for r in records
        if other in r["seconds"]
    }
    shapes = list(dict.fromkeys(shape for shape, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    rows = [
        [shape, *(style.format(cells[shape, c]) if (shape, c) in cells else "" for c in columns)] for shape in shapes
    ]
    return table(["shape", *(" ".join(column) for column in columns)], rows)


def step_table(records: list[dict]) -> str:
    rows = []
    for record in records:
        for name, seconds in record["seconds"].items():
            over = {ours: others.get(name) for ours, others in record["speedups"].items()}
            rows.append(
                [
                    record["shape"],
                    name.replace("_", " "),
                    span(seconds, 1e3, ".0f"),
                    *(f"{s['median']:.2f}" if s else "" for s in over.values()),
                ]
            )
    names = [f"{ours.replace('_', ' ')} is faster by" for ours in records[0]["speedups"]]
    return table(["images", "variant", "ms (20th to 80th percentile)", *names], rows)


def memory_table(records: list[dict]) -> str:
    rows = [
        [
            r["shape"],
            name,
            f"{r['kept_bytes'][name] / 2**20:.1f}",
            f"{r['saved_bytes'][name] / 2**20:.1f}",
            f"{r['kept_bytes'][name] / r['kept_bytes']['eager']:.2f}",
        ]
        for r in records
        for name in r["kept_bytes"]
    ]
    return table(["input", "variant", "MiB alive", "MiB saved by autograd", "of eager's"], rows)


def peak_table(records: list[dict]) -> str:
    rows = [
        [r["shape"], name, f"{peak / 2**20:.1f}", f"{peak / r['peak_bytes']['eager']:.2f}"]
        for r in records
        for name, peak in r["peak_bytes"].items()
    ]
    return table(["images", "variant", "MiB", "of eager's"], rows)


def losses_list(records: list[dict]) -> str:
    """The cases in which another provider was faster than ours, of those that do the same work."""
    lines = []
    for record in records:
        for ours, others in record["speedups"].items():
            for other, speedup in others.items():
                partial = other == "copy" or other.endswith(("convolutions", "without_penalties"))
                if not partial and not other.startswith("ours") and speedup["median"] < 1:
                    what = ", ".join(record[label] for label in KEY)
                    lines.append(f"- {what}: {ours} {speedup['median']:.2f} times as fast as {other}")
    return "\n".join(lines) or "In no case measured here."


def cases_table(records: list[dict]) -> str:
    rows = []
    for record in records:
        if "seconds" not in record:
            continue
        times = "<br>".join(f"{name} {span(s, 1e3, '.3g')}" for name, s in record["seconds"].items())
        asked = "<br>".join(
            f"{target.other} {target.speedup:.2f}: {speedup:.2f} {'yes' if speedup >= target.speedup else 'no'}"
            for target in TARGETS
            for _, speedup in target.reached([record])
        )
        rows.append([*(record[label] for label in KEY), times, asked])
    return table([*KEY, "ms (20th to 80th percentile)", "asked: reached"], rows)


def span(seconds: dict[str, float], unit: float, style: str) -> str:
    median, low, high = (format(seconds[name] * unit, style) for name in ("median", "p20", "p80"))
    return f"{median} ({low} to {high})"


def merge(results: list[dict]) -> dict:
    """One result of several of the same machine. Raises ValueError if CPU, threads or torch differ."""
    for result in results[1:]:
        for name in ("cpu", "threads", "torch", "native_kernels"):
            here, first = result["machine"][name], results[0]["machine"][name]
            if here != first:
                raise ValueError(f"results of different machines: {name} is {first!r} and {here!r}")
    records = {tuple(r[label] for label in KEY): r for result in results for r in result["records"]}
    return {"machine": results[-1]["machine"], "records": list(records.values())}


def expected() -> str:
    """Return what the model of the fused convolution predicts."""
    from bench.traffic import model_conv  # needs triton

    half, single = (model_conv.rows(dtype)[-1].ratio for dtype in model_conv.DTYPES)
    gpu = model_conv.MODELLED.name
    return EXPECTED.format(gpu=gpu, channels=model_conv.MOST_CHANNELS, half=half, single=single)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.harness.report", description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="JSON files from bench/results")
    parser.add_argument("--docs", type=Path, default=Path("docs/benchmarks.md"), help="the page to write")
    arguments = parser.parse_args()
    try:
        result = merge([json.loads(path.read_text(encoding="utf-8")) for path in arguments.results])
    except (OSError, ValueError) as error:
        parser.error(str(error))
    arguments.docs.parent.mkdir(parents=True, exist_ok=True)
    arguments.docs.write_text(f"# Benchmarks\n\n{overview(result)}\n\n{expected()}", encoding="utf-8")


if __name__ == "__main__":
    main()
