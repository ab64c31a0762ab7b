"""Benchmarks: `pytest bench/`. Read eager.py (the baseline), timing.py (how), targets.py (what for)."""
