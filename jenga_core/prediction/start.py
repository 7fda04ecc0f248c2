"""Where a predictor starts: from the layer's own queries and keys, not from chance.

Before rotation they are (nearly) linear in the normed residual stream, Q = X A. So from X and Q of some tokens:

    1. A by least squares, whatever norm, projection, bias or adapter made Q
    2. of each head's D / 2 rotary pairs the d / 2 whose products are largest: |q|^2 |k|^2
    3. of what X A gives for them, the r directions with the largest variance: A ~ A V V'
    4. x V' as a network: W1 = [A V; -A V], W2 = 1, W3 = [V', -V'], because relu(a) - relu(-a) = a

r is half of the hidden neurons. Neurons that are left over start at random, with nothing to say; training may find them
a use, or finds them dead.

Shapes   P tokens, E hidden size, H query heads, K key heads, D head size, C pairs kept, F outputs, r rank
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jenga_core.prediction.predictor import LayerPredictor, TokenNetwork

RIDGE = 1e-6
"""Of the least squares, in units of the mean square of a channel: there may be fewer tokens than channels."""

FAINT = 1e-5
"""Directions with less than this share of the largest variance are noise; as neurons they would only be amplified."""


@dataclass(frozen=True)
class Projections:
    """What a layer makes of some tokens, before rotation."""

    x_PE: Tensor
    """float32, the residual stream as it enters the layer, with a root mean square of 1."""

    q_PHD: Tensor
    k_PKD: Tensor
    """float32; coordinates c and D / 2 + c turn together."""

    speed_C: Tensor
    """Radians per token, of the D / 2 pairs; 0 for those that do not turn."""

    scale: float
    window_tokens: int | None


def unrotated(vectors_BHTD: Tensor, position_embeddings: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Queries or keys as they were before RoPE, float32 B x H x T x D, and the speeds of their D / 2 pairs.

    Args:
        vectors_BHTD: after RoPE as transformers applies it: the first R coordinates turn, c together with R / 2 + c.
        position_embeddings: cosines and sines, 1 or B x T x R, as a layer is given them; None: nothing turns.
    """
    vectors_BHTD = vectors_BHTD.float()
    D = vectors_BHTD.shape[3]
    if position_embeddings is None:
        return vectors_BHTD, vectors_BHTD.new_zeros(D // 2)
    cos_BTR, sin_BTR = (angles.float() for angles in position_embeddings)
    turns = cos_BTR.shape[2]
    stretch = (cos_BTR[0, 0].square() + sin_BTR[0, 0].square()).mean()  # YaRN scales both
    turned, still = vectors_BHTD.split([turns, D - turns], dim=3)
    u, v = turned.split(turns // 2, dim=3)
    cos, sin = cos_BTR[:, None, :, : turns // 2], sin_BTR[:, None, :, : turns // 2]
    u, v = (u * cos + v * sin) / stretch, (v * cos - u * sin) / stretch
    still_u, still_v = still.tensor_split([(D - turns) // 2], dim=3)
    first, second = ((cos_BTR[0, at, : turns // 2], sin_BTR[0, at, : turns // 2]) for at in (0, 1))
    speed = torch.atan2(second[1] * first[0] - second[0] * first[1], second[0] * first[0] + second[1] * first[1])
    return torch.cat([u, still_u, v, still_v], dim=3), torch.cat([speed, speed.new_zeros((D - turns) // 2)])


def start(projections: Projections, *, head_size: int, hidden: int) -> LayerPredictor:
    """A predictor that does what the layer does, as far as its size lets it. Draws from torch's global generator.

    Args:
        head_size: d; a layer with smaller heads keeps its own size.
        hidden: neurons after the first and after the second matrix.
    """
    x_PE, q_PHD, k_PKD = projections.x_PE, projections.q_PHD, projections.k_PKD
    P, H, D = q_PHD.shape
    K, E = k_PKD.shape[1], x_PE.shape[1]
    pairs = min(head_size, D) // 2
    predictor = LayerPredictor(
        E,
        query_heads=H,
        key_heads=K,
        head_size=2 * pairs,
        query_hidden=(hidden, hidden),
        key_hidden=(hidden, hidden),
        scale=projections.scale,
        window_tokens=projections.window_tokens,
    ).to(x_PE.device)
    asks_KC = q_PHD.square().mean(dim=0).view(K, H // K, 2, D // 2).mean(dim=1).sum(dim=1)
    answers_KC = k_PKD.square().mean(dim=0).view(K, 2, D // 2).sum(dim=1)
    best_KC = (asks_KC * answers_KC).argsort(dim=1, descending=True, stable=True)[:, :pairs]
    predictor.speed_KC.copy_(projections.speed_C[best_KC])
    coordinates_Kd = torch.cat([best_KC, best_KC + D // 2], dim=1)
    coordinates_Hd = coordinates_Kd.repeat_interleave(H // K, dim=0)
    with torch.no_grad():
        for network, made, coordinates in (
            (predictor.query, q_PHD, coordinates_Hd),
            (predictor.key, k_PKD, coordinates_Kd),
        ):
            _start_network(network, x_PE, made.gather(2, coordinates.expand(P, -1, -1)).flatten(1))
    return predictor


def _start_network(network: TokenNetwork, x_PE: Tensor, made_PF: Tensor) -> None:
    # Channels differ in size by orders of magnitude: measure each in its own unit, and keep what float32 would lose.
    size_E = x_PE.double().square().mean(dim=0).sqrt().clamp(min=1e-12)
    scaled_PE = x_PE / size_E
    gram_EE = scaled_PE.T @ scaled_PE
    gram_EE.diagonal().add_(RIDGE * x_PE.shape[0])
    A_EF = torch.linalg.solve(gram_EE, scaled_PE.T @ made_PF.double()) / size_E[:, None]
    fitted_PF = x_PE.double() @ A_EF
    variance_F, V_FF = torch.linalg.eigh(fitted_PF.T @ fitted_PF)  # ascending
    worthwhile = int((variance_F > FAINT * variance_F[-1]).sum())
    rank = min(network.hidden[0] // 2, network.hidden[1] // 2, worthwhile)
    V_Fr = V_FF[:, -rank:]
    spread_r = (variance_F[-rank:] / x_PE.shape[0]).clamp(min=1e-12).sqrt()
    inward_rE = (A_EF @ V_Fr / spread_r).T
    outward_Fr = V_Fr * spread_r
    first, second, third = network.first.weight, network.second.weight, network.third.weight
    first[: 2 * rank] = torch.cat([inward_rE, -inward_rE]).to(first.dtype)
    second[: 2 * rank] = torch.eye(2 * rank, second.shape[1], device=second.device)
    second[2 * rank :, : 2 * rank] = 0
    third.zero_()
    third[:, : 2 * rank] = torch.cat([outward_Fr, -outward_Fr], dim=1).to(third.dtype)
