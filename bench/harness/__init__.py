"""How benchmarks are timed, gated and reported."""
