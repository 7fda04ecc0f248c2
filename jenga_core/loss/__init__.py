"""Technique 3b, segment-based peak cutting: the loss without the logits.

segmented_cross_entropy    cross entropy of a few rows of logits at a time, for any batch
"""
