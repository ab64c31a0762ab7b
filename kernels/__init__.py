"""Triton kernels, installed as `pggan_fast.kernels`; they import torch and triton, nothing else."""
