"""Putting the method into a transformers model, and taking it out again.

    apply_jenga(model, config) -> JengaHandle      with report(), disabled(), undo()

apply              the handle: what a model's forward does from then on
parts              the modules of a model that the method touches; architectures: what differs between model types
involvement        what one forward call chooses: blocks, targets, scores, selections, labels
routes             the way of the rows through the layers
layer_runs         the ways in which one layer can be run: with gradient, exactly, by replay
attention_calls    queries, keys and values, caught where a layer hands them to its attention function
fused              modules in leaner form (fused_attention, projections); forwards: whose forward runs
training_loss      the loss of what reaches it
report             what was involved, told afterwards

Only here and in `finetuning` is transformers known. Nothing of it is copied: the model's own forward stays in charge of
embeddings, masks and positions; decoder layers of *this instance* are given rows of fewer tokens.
"""
