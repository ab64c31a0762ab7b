"""Benchmarks: `pytest bench/`. baseline/: compared with what; harness/: timed how; traffic/: bytes counted."""
