"""The one table of numerical margins.

A result may be as wrong as plain PyTorch is in the same dtype, plus the margin named here, relative to the largest
entry of the truth (computed in float64). Nothing is softened in CI.
"""

import torch

MARGIN = {
    ("block_scores", torch.float32): 1e-6,
    ("segmented_cross_entropy", torch.float32): 1e-6,
    ("segmented_cross_entropy", torch.bfloat16): 2e-3,
    ("keep_everything", torch.float32): 2e-5,
    ("token_involvement", torch.float64): 1e-10,
    ("token_involvement", torch.float32): 1e-6,
}
"""By what is compared and the dtype it runs in."""
