"""Technique 2, context-aware pattern prediction: block scores from small networks instead of T x T attention scores.

predictor      two networks per layer that selects: residual stream -> predicted block scores
elastic_size   neurons that are always zero are taken out while the predictor is trained
start          from the layer's own queries and keys
pair_maxima    scores of block pairs, with gradient
training       fit to exact scores of the frozen model; recall and precision on held-out sequences
store          the artifact folder: weights and what they may be used for
"""
