"""Where selected tokens meet the transformer: operations on their rows, with the gradients that they need and no more.

sight           which keys a row sees
attention       attention when only some tokens are involved; sink: the start of a text, which every group sees
replay          a layer whose output is known, in the autograd graph
rows            rows taken out of the residual stream and put back; residual_rows: in place
lora_linear     linear layers with adapters that share their input; relu_linear: OPT's first half of the MLP
gated_mlp       gate and up made again in backward; mlp: the MLP for the informative rows only
rms_norm        the norm, made again in backward
rotary          rotary positions of queries and keys
"""
