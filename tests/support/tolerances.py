"""The one table of numerical margins.

A result may be as wrong as plain PyTorch is in the same dtype, plus the margin named here, relative to the largest
entry of the truth (computed in float64). Nothing is softened in CI.
"""

import torch

MARGIN = {
    ("involved_attention", torch.float32): 4e-6,  # sums over thousands of keys; measured 2.3e-6 on an H100
    ("involved_attention", torch.float16): 1e-3,
    ("involved_attention", torch.bfloat16): 8e-3,
    ("block_scores", torch.float32): 1e-6,
    ("cross_entropy", torch.float32): 1e-6,
    ("cross_entropy", torch.float16): 1e-3,
    ("cross_entropy", torch.bfloat16): 4e-3,
    ("segmented_cross_entropy", torch.float32): 1e-6,
    ("segmented_cross_entropy", torch.float16): 5e-4,
    ("segmented_cross_entropy", torch.bfloat16): 2e-3,
    ("fused", torch.float32): 1e-5,
    ("fused", torch.bfloat16): 5e-3,
    ("gated_activation", torch.float32): 1e-6,
    ("gated_activation", torch.float16): 1e-3,
    ("gated_activation", torch.bfloat16): 4e-3,
    ("gated_mlp", torch.float32): 1e-6,
    ("gated_mlp", torch.float16): 1e-3,
    ("gated_mlp", torch.bfloat16): 4e-3,
    ("lora_linear", torch.float32): 1e-6,
    ("lora_linear", torch.float16): 1e-3,
    ("lora_linear", torch.bfloat16): 8e-3,  # its low-rank product p is bfloat16, peft's float32
    ("rms_norm", torch.float32): 1e-6,
    ("rms_norm", torch.float16): 1e-3,
    ("rms_norm", torch.bfloat16): 4e-3,
    ("rotary", torch.float32): 1e-6,
    ("rotary", torch.float16): 1e-3,
    ("rotary", torch.bfloat16): 4e-3,
    ("keep_everything", torch.float32): 2e-5,
    ("token_involvement", torch.float64): 1e-10,
    ("eager_attention", torch.float64): 1e-6,  # transformers takes its softmax in float32, whatever the dtype
    ("eager_attention", torch.float32): 1e-5,
    ("token_involvement", torch.float32): 1e-6,
}
"""By what is compared and the dtype it runs in."""
