"""`pytest bench/`: pytest-benchmark runs and records; results go to bench/results/ when all is done."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import machine, report
from bench.timing import Case, measure
from pggan_fast.training.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench", "benchmarks of pggan_fast")
    group.addoption("--seconds", type=float, default=0.5, help="time per case (default 0.5)")
    group.addoption("--compile-all", action="store_true", help="torch.compile for every op")
    group.addoption(
        "--result",
        type=Path,
        help="write here (.json, and .md beside it) instead of bench/results/cpu-DATE.json",
    )


def pytest_configure(config: pytest.Config) -> None:
    result = config.getoption("result")
    if result is not None and (result.exists() or result.suffix != ".json"):
        raise pytest.UsageError(f"--result {result}: must be a .json file that does not exist yet")
    config.records = []
    config.memory_kept_warm = keep_freed_memory()
    config.option.benchmark_quiet = True  # its table of rounds says less than ours


def pytest_report_header(config: pytest.Config) -> str:
    if config.memory_kept_warm:
        return "bench: freed memory is kept warm for all variants (malloc thresholds 1 GiB)"
    return "bench: malloc's thresholds could not be raised, large cases also time page faults"


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[dict], None]:
    """Keeps a finished record for the report."""
    return request.config.records.append


@pytest.fixture
def timed(benchmark, request: pytest.FixtureRequest) -> Callable[..., dict]:
    """Gates and times a case (for `seconds`, or --seconds) and returns its record."""

    def run(case: Case, seconds: float | None = None) -> dict:
        return measure(benchmark, case, request.config.getoption("seconds") if seconds is None else seconds)

    return run


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not config.records:
        return
    result = {"machine": machine.describe(config.memory_kept_warm), "records": config.records}
    path = config.getoption("result") or report.new_path(RESULTS, result)
    report.write(result, path)
    terminalreporter.section("targets")
    terminalreporter.write_line(report.targets_table(result["records"]))
    terminalreporter.write_line(f"written: {path} and {path.with_suffix('.md').name}")
