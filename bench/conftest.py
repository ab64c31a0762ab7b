"""`pytest bench/`: pytest-benchmark runs and records; results go to bench/results/ when all is done."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.harness import machine, plots, report
from bench.harness.cases import DTYPES
from bench.harness.timing import Case, captured, measure
from pggan_fast.training.runtime.malloc import keep_freed_memory

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench", "benchmarks of pggan_fast")
    group.addoption("--seconds", type=float, default=0.2, help="time per case (default 0.2)")
    group.addoption("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    group.addoption("--graphs", action="store_true", help="on a GPU: replay CUDA graphs, without the host's share")
    group.addoption("--all-sizes", action="store_true", help="every op at seven sizes instead of four")
    group.addoption("--shape", type=shape_of, help="N,C,H,W: time every op at this size alone")
    group.addoption("--dtype", choices=tuple(DTYPES), help="time every op in this dtype alone")
    group.addoption("--compile-all", action="store_true", help="torch.compile for every op")
    group.addoption(
        "--result",
        type=Path,
        help="write here (.json, and .md beside it) instead of bench/results/DEVICE-DATE.json",
    )


def shape_of(text: str) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in text.split(","))
    if len(sizes) != 4 or min(sizes) < 2:
        raise ValueError(text)
    return sizes


def pytest_configure(config: pytest.Config) -> None:
    result = config.getoption("result")
    if result is not None and (result.exists() or result.suffix != ".json"):
        raise pytest.UsageError(f"--result {result}: must be a .json file that does not exist yet")
    gpu = torch.cuda.is_available()
    config.option.device = config.getoption("device") or ("cuda" if gpu else "cpu")
    if config.option.device == "cuda" and not gpu:
        raise pytest.UsageError("--device cuda: torch finds no GPU")
    if config.getoption("graphs") and config.option.device != "cuda":
        raise pytest.UsageError("--graphs: only a GPU has CUDA graphs")
    config.records = []
    config.memory_kept_warm = keep_freed_memory()
    config.option.benchmark_quiet = True  # its table of rounds says less than ours


def pytest_report_header(config: pytest.Config) -> str:
    if config.memory_kept_warm:
        return "bench: freed memory is kept warm for all variants (malloc thresholds 1 GiB)"
    return "bench: malloc's thresholds could not be raised, large cases also time page faults"


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[dict], None]:
    """Keep a finished record for the report."""
    return request.config.records.append


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where the cases run: "cpu" or "cuda"."""
    return request.config.option.device


@pytest.fixture
def timed(benchmark, request: pytest.FixtureRequest) -> Callable[..., dict]:
    """Gate and time a case (for `seconds`, or --seconds) and return its record."""

    def run(case: Case, seconds: float | None = None) -> dict:
        options = request.config.option
        if options.graphs:
            case = captured(case)
        return measure(benchmark, case, options.seconds if seconds is None else seconds)

    return run


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not config.records:
        return
    result = {"machine": machine.describe(config.option.device, config.memory_kept_warm), "records": config.records}
    path = config.getoption("result") or report.new_path(RESULTS, result)
    report.write(result, path)
    if networks := [record for record in config.records if record["suite"] == "drop-in"]:
        from bench.bench_dropin import beside_documented

        terminalreporter.section("drop-in")
        terminalreporter.write_line("\n".join(beside_documented(networks)))
    terminalreporter.section("targets")
    terminalreporter.write_line(report.targets_table(result["records"]))
    written = [path.with_suffix(".md"), *plots.write(result, path.parent, path.stem)]
    terminalreporter.write_line(f"written: {path} and {', '.join(p.name for p in written)}")
