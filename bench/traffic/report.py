"""The traffic of a training step as a table and a plot."""

from pathlib import Path

NOTE = """\
A whole step (D with gradient penalty and drift, moving average, G, both Adams) in fp32 with the paper's channels,
on meta tensors: each call that is neither a view nor a plain allocation reads its inputs and writes its outputs once.
"native" is CUDA epilogues after cuDNN, "triton" Triton's kernels for everything, "auto" what an H100 takes where tf32
is allowed. "convolutions" is what convolutions alone must move: for each of them in forward, in the gradients of
inputs and weights and in their derivatives, input, weight and output once, a 2x rescaling folded in; "eager's
convolutions" are those of the baseline, which are not folded. The sums grow with the channels: half of them
(`fmap_base=4096`), and a convolution with its bias, and its gradients, taken as one call each would make 13.8, 42.3 and
80.9 GB of eager's step at 32, 256 and 1024 px, and 3.4, 12.7 and 25.5 GB of its convolutions."""


def rows(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the records of one suite, "traffic launches" or "traffic bytes"."""
    ours = records[0]["speedups"]
    pairs = [(name, other) for other in next(iter(ours.values())) for name in ours]
    unit, style = (1e9, ",.2f") if "convolutions" in records[0]["counts"] else (1, ",")
    header = ["images", *records[0]["counts"], *(f"{name} / {other}" for name, other in pairs)]
    body = [
        [
            record["shape"],
            *(format(value / unit if unit > 1 else value, style) for value in record["counts"].values()),
            *(f"{record['counts'][name] / record['counts'][other]:.2f}" for name, other in pairs),
        ]
        for record in records
    ]
    return header, body


def plot(records: list[dict], path: Path) -> bool:
    """Launches and bytes against the resolution, written to `path`. False where there are none."""
    from matplotlib.figure import Figure

    suites = {"traffic launches": ("launches a step", 1), "traffic bytes": ("GB a step", 1e9)}
    if not any(record["suite"] in suites for record in records):
        return False
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axis, (suite, (label, unit)) in zip(figure.subplots(1, 2), suites.items(), strict=True):
        members = sorted((int(r["shape"].split("x")[3]), r["counts"]) for r in records if r["suite"] == suite)
        resolutions = [resolution for resolution, _ in members]
        for provider in members[0][1]:
            axis.plot(resolutions, [counts[provider] / unit for _, counts in members], marker="o", label=provider)
        axis.set(xlabel="resolution", ylabel=label, xscale="log", ylim=(0, None))
        axis.set_xticks(resolutions, map(str, resolutions))
        axis.minorticks_off()
        axis.legend(fontsize="x-small")
    figure.savefig(path, dpi=80)
    return True
