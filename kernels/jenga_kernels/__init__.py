"""Jenga's kernels: one Triton file per kernel, and `reference`, the plain-PyTorch twin of every one of them.

Importing this package imports neither triton nor torch.
"""
