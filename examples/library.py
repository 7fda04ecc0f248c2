"""The method without the service: patch a model, train it as usual, undo."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jenga_core import JengaConfig, apply_jenga

model = LlamaForCausalLM(
    LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, vocab_size=256)
)
tokens = torch.randint(256, (1, 1024))

handle = apply_jenga(model.train(), JengaConfig.preset("jenga", keep_fraction=0.4))
model(input_ids=tokens, labels=tokens).loss.backward()
print(handle.report())
handle.undo()
