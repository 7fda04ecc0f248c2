"""What "eliminated" and "forward-only" mean, against plain autograd on the unpatched model with detach()."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jenga_core import JengaConfig, apply_jenga
from jenga_core.patching.apply import handle_of
from tests.support.assertions import assert_within_budget
from tests.support.tiny import MODEL_TYPES, tiny_batch, tiny_model

BLOCK = 8


def sparse_step(
    model: nn.Module, batch: dict[str, Tensor], recompute: str = "none", **selection: Any
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Loss, gradients, and B x T bool: the tokens involved at the last layer of sequence 0 (batch 1 only)."""
    policy = {"block_tokens": BLOCK, **selection}
    handle = apply_jenga(model, JengaConfig.preset("jenga", selection=policy, recompute=recompute))
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    involved = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
    for block in handle.report().spans[-1].blocks:
        involved[0, block * BLOCK : (block + 1) * BLOCK] = True
    handle.undo()
    model.zero_grad(set_to_none=True)
    return loss.detach(), gradients, involved


def plain_layers(model: nn.Module, batch: dict[str, Tensor], involved: Tensor, exact: range) -> Tensor:
    """The specification, in ordinary operations on whole layers.

    In the `exact` layers, the hidden states, keys and values of the other tokens are constants.
    From the end of `exact` on, layers see the involved tokens only, as a shorter sequence at its original positions.
    """
    decoder = model.get_decoder()
    positions = torch.arange(batch["input_ids"].shape[1])[None]
    x = embedded(decoder, batch["input_ids"], positions)
    hooks = []
    for index in exact:
        for module in makers_of_keys_and_values(decoder.layers[index].self_attn):
            hooks.append(module.register_forward_hook(lambda _m, _i, y: constant_in_either_order(involved, y)))
    for index, layer in enumerate(decoder.layers):
        if index in exact:
            x = constant_unless(involved, x)
        if index == exact.stop:
            x, positions = x[:, involved[0]], positions[:, involved[0]]
        mask = may_attend(positions[0], window_of(layer))
        x = layer(x, attention_mask=mask, position_ids=positions, **rotary_angles(decoder, layer, x, positions))
    for hook in hooks:
        hook.remove()
    if exact.stop == len(decoder.layers):
        x = x[:, involved[0]]
    targets = batch["labels"].roll(-1, dims=1)
    targets[:, -1] = -100
    return nn.functional.cross_entropy(logits(model, x).flatten(0, 1), targets[:, involved[0]].flatten())


def embedded(decoder: nn.Module, input_ids: Tensor, positions: Tensor) -> Tensor:
    """The residual stream as it enters layer 0; OPT adds learned positions, counted from 2."""
    x = decoder.embed_tokens(input_ids)
    if hasattr(decoder, "embed_positions"):
        x = decoder.project_in(x) if decoder.project_in is not None else x
        x = x + decoder.embed_positions.weight[positions + 2]
    return x


def makers_of_keys_and_values(attention: nn.Module) -> list[nn.Module]:
    """The last modules that act on keys and values alone, or on queries too where they are fused."""
    if hasattr(attention, "qkv_proj"):
        return [attention.qkv_proj]
    return [getattr(attention, "k_norm", attention.k_proj), attention.v_proj]


def window_of(layer: nn.Module) -> int | None:
    """Tokens that the layer's attention sees; None: all before."""
    attention = layer.self_attn
    return getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))


def constant_in_either_order(involved_BT: Tensor, y: Tensor) -> Tensor:
    """constant_unless, also for B x heads x T x D (what Gemma 3 norms)."""
    if y.shape[1] == involved_BT.shape[1]:
        return constant_unless(involved_BT, y)
    return constant_unless(involved_BT, y.transpose(1, 2)).transpose(1, 2)


def may_attend(positions_G: Tensor, window: int | None) -> Tensor:
    """1 x 1 x G x G, added to the scores: 0 where causal and within the window, by position."""
    distance_GG = positions_G[:, None] - positions_G
    hidden_GG = (distance_GG < 0) | (distance_GG >= (window or torch.inf))
    return torch.zeros(hidden_GG.shape, dtype=torch.float64).masked_fill(hidden_GG, -torch.inf)[None, None]


def rotary_angles(decoder: nn.Module, layer: nn.Module, x: Tensor, positions: Tensor) -> dict[str, Any]:
    """The layer's argument for them; Gemma 3 has two sets of angles, OPT none."""
    if not hasattr(decoder, "rotary_emb"):
        return {}
    by_layer_type = "full_attention" in decoder.config.rope_parameters
    which = (layer.self_attn.layer_type,) if by_layer_type else ()
    return {"position_embeddings": decoder.rotary_emb(x, positions, *which)}


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Of the residual stream as it leaves the last layer."""
    decoder, cap = model.get_decoder(), getattr(model.config, "final_logit_softcapping", None)
    for name in ("norm", "final_layer_norm", "project_out"):
        module = getattr(decoder, name, None)
        x = module(x) if module is not None else x
    z = model.lm_head(x)
    return z if cap is None else cap * torch.tanh(z / cap)


def constant_unless(involved_BT: Tensor, x_BTx: Tensor) -> Tensor:
    """x, through which no gradient flows at the other tokens."""
    mask = involved_BT.reshape(*involved_BT.shape, *[1] * (x_BTx.dim() - 2))
    return torch.where(mask, x_BTx, x_BTx.detach())


@pytest.mark.parametrize("entry", [0, 2, 3])
@pytest.mark.parametrize("unselected", ["eliminated", "forward_only"])
@pytest.mark.parametrize("below", ["involved", "forward_only"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_carried_selection_is_its_specification(model_type: str, below: str, unselected: str, entry: int) -> None:
    attention = "eager" if model_type == "gemma2" else "sdpa"  # sdpa leaves Gemma 2's cap on attention scores out
    model = tiny_model(model_type, attention=attention).double()
    batch = tiny_batch(batch=1, tokens=77, padded=False)
    del batch["attention_mask"]
    policy = {"below_entry": below, "unselected": unselected, "entry_layer": entry}
    steps = {recompute: sparse_step(model, batch, recompute, **policy) for recompute in ("none", "full")}
    involved = steps["none"][2]
    assert 0 < int(involved.sum()) < 40
    exact = range(entry if below == "involved" else 0, entry if unselected == "eliminated" else 4)
    truth = plain_layers(model, batch, involved, exact)
    truth.backward()
    budget = "eager_attention" if attention == "eager" else "token_involvement"
    for loss, gradients, same_involved in steps.values():
        assert torch.equal(same_involved, involved)
        assert_within_budget(budget, ours=loss, truth=truth.detach())
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            if name.endswith("k_proj.bias") and parameter.grad.abs().max() < 1e-15:
                # Without rotation (OPT) it adds the same to all scores of a query, and softmax does not see it.
                assert gradients[name].abs().max() < 1e-15
            elif model_type.startswith("gemma") and "norm" in name:  # computed in float32 whatever the model's dtype
                assert_within_budget(budget, ours=gradients[name].float(), truth=parameter.grad)
            else:
                assert_within_budget(budget, ours=gradients[name], truth=parameter.grad)


@pytest.mark.parametrize("scope", ["carried", "per_layer"])
@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if not name.startswith("opt")])
def test_mlp_elimination_is_its_specification(model_type: str, scope: str) -> None:
    """Of the rows a layer computes, the blocks with the largest |intermediate activation| get an MLP, the others 0."""
    model = tiny_model(model_type, attention="eager").double()
    batch = tiny_batch(batch=1, tokens=80, padded=False)
    del batch["attention_mask"]
    policy = {"scope": scope, "below_entry": "involved", "entry_layer": 3, "keep_fraction": 0.5}
    handle = apply_jenga(
        model, JengaConfig.preset("jenga", selection={"block_tokens": BLOCK, "mlp_keep_fraction": 0.6, **policy})
    )
    seen: dict[str, Tensor] = {}
    mlp = handle.parts.layers[3].mlp
    hook = mlp.register_forward_hook(lambda _m, given, out: seen.update(x=given[0], y=out))
    loss = model(**batch).loss
    hook.remove()
    report = handle.report()
    assert len(report.spans[-1].blocks) == 5
    assert report.mlp_kept_fraction == pytest.approx((1.0, 1.0, 1.0, 0.5 * 0.6))

    x_GE = seen["x"][0]
    assert x_GE.shape[0] == 5 * BLOCK
    taken: list[Tensor] = []
    hook = mlp.down_proj.register_forward_hook(lambda _m, given, _out: taken.append(given[0]))
    dense_GE = mlp(x_GE[None])[0]
    hook.remove()
    activity_N = taken[0][0].abs().float().mean(-1).reshape(5, BLOCK).mean(1)
    middle = activity_N[1:4].argmax() + 1  # the first block, and the last with a label, are kept whatever they score
    for block in range(5):
        rows = slice(block * BLOCK, (block + 1) * BLOCK)
        expected = dense_GE[rows] if block in (0, int(middle), 4) else torch.zeros_like(dense_GE[rows])
        torch.testing.assert_close(seen["y"][0, rows], expected)
    loss.backward()
    handle.undo()
    assert "forward" not in vars(mlp)


@pytest.mark.parametrize("below", ["involved", "forward_only"])
def test_sequences_of_a_batch_do_not_meet(below: str) -> None:
    """A padded batch of three is three batches of one."""
    model, batch = tiny_model().double(), tiny_batch(batch=3)
    handle = apply_jenga(model, JengaConfig.preset("jenga", selection={"block_tokens": BLOCK, "below_entry": below}))
    together = model(**batch, num_items_in_batch=1).loss
    lengths = batch["attention_mask"].sum(1).tolist()
    alone, kept = [], []
    for row, length in enumerate(lengths):
        single = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
        alone.append(model(**single).loss)
        blocks = handle.report().spans[-1].blocks
        kept.append(
            sum(min(BLOCK, length - block * BLOCK) for block in blocks) - (max(blocks) == (length - 1) // BLOCK)
        )
    mean = sum(loss * count for loss, count in zip(alone, kept, strict=True)) / sum(kept)
    labels = sum(length - 1 for length in lengths)
    assert_within_budget("token_involvement", ours=together.detach(), truth=(mean * labels).detach())


def test_per_layer_rule_brings_blocks_back() -> None:
    """The paper's rule: a block eliminated in one layer passes its residual on, and may be chosen by the next."""
    model, batch = tiny_model(layers=6), tiny_batch(batch=1, padded=False)
    handle = apply_jenga(
        model, JengaConfig.preset("jenga", selection={"block_tokens": 4, "scope": "per_layer", "entry_layer": 1})
    )
    model(**batch).loss.backward()
    spans = handle.report().spans
    assert [(span.first_layer, span.last_layer) for span in spans] == [(layer, layer) for layer in range(1, 6)]
    assert len({span.blocks for span in spans}) > 1
    assert all(0 in span.blocks for span in spans)


@pytest.mark.parametrize(("score", "expected"), [("recent", (0, 6, 7, 8, 9)), ("random", None)])
def test_controls(score: str, expected: tuple[int, ...] | None) -> None:
    model, batch = tiny_model(), tiny_batch(batch=1, tokens=80, padded=False)
    selection = {"block_tokens": BLOCK, "score": score, "keep_fraction": 0.5, "target_fraction": 0.0}
    handle = apply_jenga(model, JengaConfig.preset("jenga", selection=selection))
    drawn = set()
    for seed in (1, 1, 2, 3):
        torch.manual_seed(seed)
        model(**batch)
        drawn.add(handle.report().spans[-1].blocks)
    if expected is not None:
        assert drawn == {expected}
    else:
        assert 2 <= len(drawn) <= 3  # reproducible by torch's seed, and different for different seeds
        assert all(blocks[0] == 0 and blocks[-1] == 9 and len(blocks) == 5 for blocks in drawn)


def test_answers_choose_their_context() -> None:
    """Labels in the last block alone: it is kept, and what it asks decides about the others, not what all ask."""
    model, batch = tiny_model(), tiny_batch(batch=1, tokens=80, padded=False)
    batch["labels"][:, :76] = -100
    scores = {}
    for asked_by in ("targets", "all"):
        selection = {"block_tokens": BLOCK, "asked_by": asked_by, "score": "exact", "column": "sum"}
        handle = apply_jenga(model, JengaConfig.preset("jenga", selection=selection))
        with torch.no_grad():
            model(**batch)
            scores[asked_by] = handle.run(batch, handle.config.selection)[1].scores[2][0]
        assert handle.report().spans[0].targets == (9,)
        assert {0, 9} < set(handle.report().spans[0].blocks)
        handle.undo()
    assert scores["targets"][9] == scores["all"][9]  # nobody else sees it
    assert (scores["targets"] <= scores["all"]).all()
    assert scores["targets"][0] < 0.5 * scores["all"][0]  # ten blocks see it


def test_targets_move_on_from_epoch_to_epoch() -> None:
    model, batch = tiny_model(), tiny_batch(batch=1, tokens=80, padded=False)
    handle = apply_jenga(model, JengaConfig.preset("jenga", selection={"block_tokens": BLOCK}))
    assert handle_of(model) is handle
    seen: list[int] = []
    for epoch in range(5):
        handle.epoch = epoch
        model(**batch)
        targets = handle.report().spans[0].targets
        model(**batch)
        assert handle.report().spans[0].targets == targets
        assert set(targets) <= set(handle.report().spans[0].blocks)
        seen += targets
    assert sorted(seen) == list(range(10))  # 4 kept, 2 of them targets: five epochs learn from all ten, once


@pytest.mark.parametrize("unselected", ["eliminated", "forward_only"])
def test_per_layer_selection_is_its_specification(unselected: str) -> None:
    """y_t = x_t where eliminated, y_t = x_t + stopgrad(f(x))_t where forward-only; the loss is on all tokens."""
    model = tiny_model().double()
    batch = tiny_batch(batch=1, tokens=64, padded=False)
    del batch["attention_mask"]
    policy = {"scope": "per_layer", "entry_layer": 1, "unselected": unselected, "loss_on": "all"}
    handle = apply_jenga(model, JengaConfig.preset("jenga", selection={"block_tokens": BLOCK, **policy}))
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    chosen = {span.first_layer: span.blocks for span in handle.report().spans}
    handle.undo()
    model.zero_grad(set_to_none=True)

    decoder, positions = model.get_decoder(), torch.arange(64)[None]
    x = decoder.embed_tokens(batch["input_ids"])
    for index, layer in enumerate(decoder.layers):
        involved = torch.zeros(1, 64, dtype=torch.bool)
        for block in chosen.get(index, range(64 // BLOCK)):
            involved[0, block * BLOCK : (block + 1) * BLOCK] = True
        is_involved = involved[..., None]
        if unselected == "eliminated":
            at = positions[:, involved[0]]
            rows = layer(
                x[:, involved[0]], attention_mask=may_attend(at[0], None), **rotary_angles(decoder, layer, x, at)
            )
            x = x.clone().masked_scatter(is_involved, rows)
            continue
        hooks = [
            module.register_forward_hook(lambda _m, _i, y, involved=involved: constant_unless(involved, y))
            for module in makers_of_keys_and_values(layer.self_attn)
        ]
        y = layer(
            constant_unless(involved, x),
            attention_mask=may_attend(positions[0], None),
            **rotary_angles(decoder, layer, x, positions),
        )
        for hook in hooks:
            hook.remove()
        x = torch.where(is_involved, y, x + (y - x).detach())
    truth = model.loss_function(logits=logits(model, x), labels=batch["labels"], vocab_size=model.config.vocab_size)
    truth.backward()
    # transformers computes this loss in float32 whatever the model's dtype
    assert_within_budget("token_involvement", ours=loss.detach().float(), truth=truth.detach())
    for name, parameter in model.named_parameters():
        assert_within_budget("token_involvement", ours=gradients[name].float(), truth=parameter.grad)


def test_saved_activations_fall_with_the_kept_fraction() -> None:
    from jenga_core.memory.accounting import saved_activations

    model, batch = tiny_model(layers=8), tiny_batch(batch=1, tokens=240, padded=False)
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    saved_bytes = {}
    policies = {
        "carried": {"below_entry": "involved"},
        "deferred": {},
        "gradient-only": {"unselected": "forward_only"},
        "gradient-only per layer": {"scope": "per_layer", "unselected": "forward_only", "entry_layer": 0},
    }
    for name, policy in policies.items():
        for keep_fraction in (0.2, 0.5, 1.0):
            selection = {"block_tokens": BLOCK, "keep_fraction": keep_fraction, **policy}
            handle = apply_jenga(model, JengaConfig.preset("jenga", selection=selection))
            with saved_activations(model) as saved:
                loss = model(**batch).loss
            loss.backward()
            saved_bytes[name, keep_fraction] = saved.total_bytes
            handle.undo()
    assert saved_bytes["carried", 0.2] < 0.7 * saved_bytes["carried", 1.0]
    for name, most in (("deferred", 0.4), ("gradient-only", 0.6)):  # forward-only tokens leave their keys and values
        assert saved_bytes[name, 0.2] < most * saved_bytes["carried", 1.0]
        assert saved_bytes[name, 0.2] < saved_bytes[name, 0.5] < saved_bytes[name, 1.0]
    per_layer = "gradient-only per layer"
    assert saved_bytes[per_layer, 0.2] < 0.6 * saved_bytes[per_layer, 1.0]


@pytest.mark.parametrize(
    "config",
    [
        {"preset": "lora"},
        {"preset": "lora", "recompute": "full"},
        {"preset": "longlora", "attention_group_tokens": 1000},
        {"keep_fraction": 1.0},
        {"keep_fraction": 1.0, "selection": {"loss_on": "all"}},
        {"keep_fraction": 1.0, "selection": {"scope": "per_layer", "loss_on": "all"}},
    ],
    ids=str,
)
def test_padding_predicts_nothing_even_where_a_label_follows(config: dict[str, Any]) -> None:
    model, batch = tiny_model(), tiny_batch(batch=2, tokens=40, padded=False)
    mask = torch.ones_like(batch["input_ids"])
    mask[1, :11] = 0
    labels = batch["labels"].clone()
    labels[1, :11] = -100
    expected_labels = labels.clone()
    expected_labels[1, 11] = -100  # the first real token, which only padding could predict
    expected = model(input_ids=batch["input_ids"], attention_mask=mask, labels=expected_labels).loss
    apply_jenga(model, JengaConfig.parse(config))
    loss = model(input_ids=batch["input_ids"], attention_mask=mask, labels=labels).loss
    assert torch.allclose(loss, expected, atol=1e-5)


def test_labels_at_padding_weigh_as_whoever_counted_them_counts() -> None:
    model, batch = tiny_model(), tiny_batch(batch=2, tokens=40, padded=False)
    mask = torch.ones_like(batch["input_ids"])
    mask[1, :11] = 0
    apply_jenga(model, JengaConfig.preset("lora"))
    given = {"input_ids": batch["input_ids"], "attention_mask": mask, "labels": batch["labels"]}
    all_labels = (batch["labels"][:, 1:] != -100).sum()
    assert torch.allclose(model(**given, num_items_in_batch=all_labels).loss, model(**given).loss)
