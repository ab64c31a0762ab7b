"""Lower bounds of a training step on a GPU, read off the machine code of its launches."""
