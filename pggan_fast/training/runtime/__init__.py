"""How a run uses the machine: CUDA graphs, signals, malloc, OpenMP."""
