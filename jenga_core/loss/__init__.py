"""Technique 3b, segment-based peak cutting: the loss without the logits."""
