"""Benchmarks: `pytest bench/`. baseline/ is what they compare with, harness/ how they time, traffic/ what they count."""
