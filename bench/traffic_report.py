"""The traffic of a training step as a table and a plot."""

from pathlib import Path


def rows(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the records of one suite, "traffic launches" or "traffic bytes"."""
    counts = [record["counts"] for record in records]
    other = "convolutions" if "convolutions" in counts[0] else "eager"
    ours = list(records[0]["speedups"])
    unit, style = (1e9, ",.2f") if other == "convolutions" else (1, ",")
    header = ["images", *counts[0], *(f"{name} / {other}" for name in ours)]
    body = [
        [
            record["shape"],
            *(format(value / unit if unit > 1 else value, style) for value in record["counts"].values()),
            *(f"{record['counts'][name] / record['counts'][other]:.2f}" for name in ours),
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
