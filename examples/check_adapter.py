"""Does an adapter work? Load it on its base model with plain peft and compare the logits.

    python examples/check_adapter.py BASE_MODEL_FOLDER ADAPTER_FOLDER

Exit code 0 if the adapter loads and changes the model's logits, 1 if it changes nothing.
"""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "def read_header(self, line):\n    "


def main(base: str, adapter: str) -> int:
    """Print the largest change of a logit."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        before = model(**inputs).logits
        after = PeftModel.from_pretrained(model, adapter).eval()(**inputs).logits
    change = (after - before).abs().max().item()
    print(f"{change:.4f}")
    return 0 if change > 0 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
