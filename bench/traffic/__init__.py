"""Launches and bytes of a training step, counted on meta tensors."""
