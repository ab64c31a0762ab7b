"""Studies of training itself, each a command: `python -m experiments.NAME`."""
