"""Putting the method into a transformers model, and taking it out again.

    apply_jenga(model, config) -> JengaHandle      with report(), disabled(), undo()

Only here and in `finetuning` is transformers known. Nothing of it is copied: the model's own forward stays in charge of
embeddings, masks and positions; decoder layers of *this instance* are given rows of fewer tokens.
"""
