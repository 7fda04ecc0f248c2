"""Plain-PyTorch twins: what each kernel means, on any device and for any size.

Shapes   B batch, H query heads, K key/value heads, T tokens, N blocks, D head size
         S rows of a segment, V vocabulary, F intermediate size
         R rows of the residual stream, G selected rows, E hidden size
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_scores(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    block_of_token_BT: Tensor,
    document_of_block_BN: Tensor,
    *,
    scale: float,
    window_tokens: int | None = None,
    query_chunk_tokens: int = 128,
) -> Tensor:
    """How much each query block asks of each key block.

        S_h,ij = scale * q_h,i . k_h,j          i > j, both in the same document
        I_mn   = max over i in block m, j in block n of  (1/H) * sum over h of max(S_h,ij, 0)

    Paper, section on information-driven token elimination (equations 1 and 2), with queries and keys after RoPE. Only
    positive scores count, a token does not ask anything of itself (i = j is left out), and padding asks and is asked
    nothing. T x T never exists; the largest temporary is B x H x query_chunk_tokens x T.

    Args:
        q_BHTD: queries, any float dtype. H is a multiple of K (grouped-query attention).
        k_BKTD: keys.
        block_of_token_BT: int64, the block of each token, -1 for padding. Blocks are numbered in token order.
        document_of_block_BN: int64, the document of each block, -1 where a sequence has fewer than N blocks.
        scale: multiplies q . k, as in attention; usually D ** -0.5.
        window_tokens: of a sliding window: only pairs with i - j < window_tokens ask anything. None: all pairs.

    Returns:
        float32 (float64 for float64) B x N (query block) x N (key block), 0 where nothing is asked.
    """
    B, H, T, _ = q_BHTD.shape
    K, N = k_BKTD.shape[1], document_of_block_BN.shape[1]
    k_BHDT = k_BKTD.repeat_interleave(H // K, dim=1).transpose(2, 3)
    position_T = torch.arange(T, device=q_BHTD.device)
    real_BT = block_of_token_BT >= 0
    block_BT = block_of_token_BT.clamp(min=0)
    document_BT = document_of_block_BN.gather(1, block_BT)
    precise = torch.promote_types(q_BHTD.dtype, torch.float32)
    scores_BNN = q_BHTD.new_zeros(B, N, N, dtype=precise)
    window_tokens = T if window_tokens is None else window_tokens

    for first in range(0, T, query_chunk_tokens):
        chunk = slice(first, min(first + query_chunk_tokens, T))
        asked_BCT = (q_BHTD[:, :, chunk] @ k_BHDT).to(precise).mul_(scale).clamp_(min=0).mean(dim=1)
        seen_BCT = (
            (position_T[chunk, None] > position_T)
            & (position_T[chunk, None] - position_T < window_tokens)
            & (document_BT[:, chunk, None] == document_BT[:, None, :])
            & real_BT[:, chunk, None]
            & real_BT[:, None, :]
        )
        asked_BCT.masked_fill_(~seen_BCT, 0)
        C = asked_BCT.shape[1]
        by_key_block_BCN = asked_BCT.new_zeros(B, C, N).scatter_reduce_(
            2, block_BT[:, None, :].expand(B, C, T), asked_BCT, "amax"
        )
        scores_BNN.scatter_reduce_(1, block_BT[:, chunk, None].expand(B, C, N), by_key_block_BCN, "amax")
    return scores_BNN


def cross_entropy(
    logits_SV: Tensor, target_S: Tensor, *, softcap: float | None = None, with_gradient: bool = True
) -> Tensor:
    """Losses of rows of logits, and their gradient in the logits' place.

        z = softcap tanh(logit / softcap)     or the logit itself
        loss_r = log sum_v exp(z_rv) - z_r,target(r)
        d loss_r / d logit_rv = (softmax(z_r)_v - [v = target(r)]) (1 - (z_rv / softcap)^2)     or without the factor

    Args:
        logits_SV: any float dtype; overwritten by the gradient unless `with_gradient` is False.
        target_S: int64, each in 0 .. V - 1.

    Returns:
        float32 (float64 for float64) S, in nats.
    """
    z_SV = logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32))
    if softcap is not None:
        z_SV = (z_SV / softcap).tanh_().mul_(softcap)
    lse_S1 = z_SV.logsumexp(dim=1, keepdim=True)
    target_S1 = target_S[:, None]
    loss_S = (lse_S1 - z_SV.gather(1, target_S1)).squeeze(1)
    if with_gradient:
        gradient_SV = (z_SV - lse_S1).exp_()
        gradient_SV.scatter_add_(1, target_S1, torch.full_like(lse_S1, -1.0))
        if softcap is not None:
            gradient_SV.mul_(1 - (z_SV / softcap).square_())
        logits_SV.copy_(gradient_SV)
    return loss_S


def involved_attention(
    q_BHGD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    first_BG: Tensor,
    last_BG: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    chunk_rows: int = 256,
) -> tuple[Tensor, Tensor]:
    """Attention of query rows that each see the keys first..last; last = -1 marks a surplus row, which sees nothing.

        o_g = sum over j in first_g..last_g of softmax_j(s_gj) v_j     s_gj = scale q_g . k_j, or cap tanh(s_gj / cap)

    Returns:
        o like q, laid out B x G x H x D in memory, and the log of the softmax's sum B x H x G (float32, float64 for
        float64; +inf for surplus rows). The largest temporary is B x H x chunk_rows x T.
    """
    B, H, G, D = q_BHGD.shape
    group = H // k_BKTD.shape[1]
    k_BHTD, v_BHTD = k_BKTD.repeat_interleave(group, dim=1), v_BKTD.repeat_interleave(group, dim=1)
    o_BHGD = q_BHGD.new_zeros(B, G, H, D).transpose(1, 2)
    lse_BHG = q_BHGD.new_empty(B, H, G, dtype=torch.promote_types(q_BHGD.dtype, torch.float32))
    for begin in range(0, G, chunk_rows):
        rows = slice(begin, begin + chunk_rows)
        s_BHCT, seen_B1CT, _ = _scores(q_BHGD[:, :, rows], k_BHTD, first_BG[:, rows], last_BG[:, rows], scale, softcap)
        lse_BHC = s_BHCT.logsumexp(dim=3).masked_fill(~seen_B1CT.any(dim=3), torch.inf)
        p_BHCT = (s_BHCT - lse_BHC[..., None]).exp()
        o_BHGD[:, :, rows] = p_BHCT.to(v_BHTD.dtype) @ v_BHTD
        lse_BHG[:, :, rows] = lse_BHC
    return o_BHGD, lse_BHG


def involved_attention_backward(
    do_BHGD: Tensor,
    q_BHGD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    o_BHGD: Tensor,
    lse_BHG: Tensor,
    first_BG: Tensor,
    last_BG: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    chunk_rows: int = 256,
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ of every row, and dK and dV of the rows' own keys (row g's key stands at last_g), from the rows' queries.

        P  = exp(S - lse)      dP = dO V^T      dS = P (dP - rowsum(dO O)) (1 - (S / cap)^2)
        dQ = scale dS K        dK = scale dS^T Q        dV = P^T dO

    Returns:
        B x H x G x D, and twice B x K x G x D, in q's dtype; 0 for surplus rows.
    """
    B, H, G, D = q_BHGD.shape
    K = k_BKTD.shape[1]
    k_BHTD, v_BHTD = (x.repeat_interleave(H // K, dim=1) for x in (k_BKTD, v_BKTD))
    precise = lse_BHG.dtype
    delta_BHG = (do_BHGD.to(precise) * o_BHGD.to(precise)).sum(dim=3)
    has_key_BG = last_BG >= 0
    own_BHGT = last_BG.clamp(min=0)[:, None, None, :]
    dq_BHGD = q_BHGD.new_zeros(B, G, H, D).transpose(1, 2)
    dk_BHGD, dv_BHGD = (q_BHGD.new_zeros(B, H, G, D, dtype=precise) for _ in range(2))
    for begin in range(0, G, chunk_rows):
        rows = slice(begin, begin + chunk_rows)
        q, do = q_BHGD[:, :, rows], do_BHGD[:, :, rows]
        s, seen, through_cap = _scores(q, k_BHTD, first_BG[:, rows], last_BG[:, rows], scale, softcap)
        p = (s - lse_BHG[:, :, rows, None]).exp() * seen
        ds = p * ((do @ v_BHTD.transpose(2, 3)).to(precise) - delta_BHG[:, :, rows, None]) * through_cap * scale
        dq_BHGD[:, :, rows] = ds.to(q.dtype) @ k_BHTD
        at_own_keys = own_BHGT.expand(B, H, ds.shape[2], G)
        dk_BHGD += (ds.gather(3, at_own_keys).to(q.dtype).transpose(2, 3) @ q).to(precise)
        dv_BHGD += (p.gather(3, at_own_keys).to(q.dtype).transpose(2, 3) @ do).to(precise)
    of_group = (x.unflatten(1, (K, H // K)).sum(dim=2) * has_key_BG[:, None, :, None] for x in (dk_BHGD, dv_BHGD))
    dk_BKGD, dv_BKGD = (x.to(q_BHGD.dtype) for x in of_group)
    return dq_BHGD, dk_BKGD, dv_BKGD


def _scores(
    q_BHCD: Tensor, k_BHTD: Tensor, first_BC: Tensor, last_BC: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Scores (-inf where unseen), what is seen (B x 1 x C x T), and the derivative of the cap."""
    key_T = torch.arange(k_BHTD.shape[2], device=q_BHCD.device)
    seen_B1CT = ((key_T >= first_BC[:, :, None]) & (key_T <= last_BC[:, :, None]))[:, None]
    precise = torch.promote_types(q_BHCD.dtype, torch.float32)
    s_BHCT = (q_BHCD @ k_BHTD.transpose(2, 3)).to(precise) * scale
    through_cap: Tensor | float = 1.0
    if softcap is not None:
        capped_BHCT = (s_BHCT / softcap).tanh()
        s_BHCT, through_cap = capped_BHCT * softcap, 1 - capped_BHCT**2
    return s_BHCT.masked_fill(~seen_B1CT, -torch.inf), seen_B1CT, through_cap


def gated_activation(gate_SF: Tensor, up_SF: Tensor, *, activation: str, out_SF: Tensor | None = None) -> Tensor:
    """act(gate) * up of a gated MLP, into `out_SF` (which may be gate or up itself) or a new tensor.

    Args:
        activation: 'silu', or 'gelu_tanh' (GELU by its tanh approximation).
    """
    precise = torch.promote_types(gate_SF.dtype, torch.float32)
    activated_SF, _ = _activation_and_slope(gate_SF.to(precise), activation)
    h_SF = activated_SF.mul_(up_SF)
    return h_SF.to(gate_SF.dtype) if out_SF is None else out_SF.copy_(h_SF)


def gated_activation_backward(d_h_SF: Tensor, gate_SF: Tensor, up_SF: Tensor, *, activation: str) -> None:
    """The gradients of gate and up from that of act(gate) * up, written over gate and up.

    d gate = d h * up * act'(gate)          d up = d h * act(gate)
    """
    precise = torch.promote_types(gate_SF.dtype, torch.float32)
    activated_SF, slope_SF = _activation_and_slope(gate_SF.to(precise), activation)
    gate_SF.copy_(slope_SF.mul_(d_h_SF).mul_(up_SF))
    up_SF.copy_(activated_SF.mul_(d_h_SF))


def _activation_and_slope(g: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    if activation == "silu":
        s = g.sigmoid()
        return g * s, s * (1 + g * (1 - s))
    if activation == "gelu_tanh":
        c, a = (2 / torch.pi) ** 0.5, 0.044715
        t = (c * (g + a * g**3)).tanh()
        return g * (1 + t) / 2, (1 + t) / 2 + g * (1 - t**2) * c * (1 + 3 * a * g**2) / 2
    raise ValueError(f"activation must be 'silu' or 'gelu_tanh', got {activation!r}")


def rms_norm(
    x_RE: Tensor, weight_E: Tensor, *, epsilon: float, offset: float = 0.0, index_G: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Selected rows of the residual stream, normed, G x E; and 1 / their root mean square, float32 (float64) G.

        y_g = x_r (mean_e x_re^2 + epsilon)^-1/2 (offset + w)          r = index_g

    Args:
        offset: added to the weight; Gemma's norms have 1.
        index_G: int64; -1 is a surplus row, whose output is 0. None: all rows in order.
    """
    rows_GE = _rows_in_float32(x_RE, index_G)
    rstd_G = (rows_GE.square().mean(dim=1) + epsilon).rsqrt()
    return (rows_GE * rstd_G[:, None] * (weight_E.to(rows_GE.dtype) + offset)).to(x_RE.dtype), rstd_G


def rms_norm_backward(
    d_y_GE: Tensor,
    x_RE: Tensor,
    weight_E: Tensor,
    rstd_G: Tensor,
    *,
    offset: float = 0.0,
    index_G: Tensor | None = None,
    into_RE: Tensor | None = None,
) -> Tensor:
    """The gradient of the rows that `rms_norm` normed: added to the rows of `into_RE` in place, or G x E.

    d x_r = rstd_g (d x^_g - x^_g mean_e(d x^_ge x^_ge))          x^_g = x_r rstd_g,   d x^_g = d y_g (offset + w)
    """
    x_hat_GE = _rows_in_float32(x_RE, index_G) * rstd_G[:, None]
    d_x_hat_GE = d_y_GE.to(x_hat_GE.dtype) * (weight_E.to(x_hat_GE.dtype) + offset)
    along_G1 = (d_x_hat_GE * x_hat_GE).mean(dim=1, keepdim=True)
    d_x_GE = (d_x_hat_GE - x_hat_GE * along_G1) * rstd_G[:, None]
    if index_G is not None:
        d_x_GE = d_x_GE.masked_fill((index_G < 0)[:, None], 0)
    if into_RE is None:
        return d_x_GE.to(x_RE.dtype)
    return add_rows(into_RE, d_x_GE, torch.arange(len(x_RE), device=x_RE.device) if index_G is None else index_G)


def add_rows(x_RE: Tensor, rows_GE: Tensor, index_G: Tensor) -> Tensor:
    """x, to whose rows `index` (int64, all different, -1 for nowhere) the given rows have been added in place."""
    kept = index_G >= 0
    where = index_G[kept]
    x_RE[where] = (x_RE[where] + rows_GE[kept]).to(x_RE.dtype)
    return x_RE


def put_rows(x_RE: Tensor, rows_GE: Tensor, index_G: Tensor) -> Tensor:
    """x, whose rows `index` (int64, all different, -1 for nowhere) have been replaced by the given rows in place."""
    kept = index_G >= 0
    x_RE[index_G[kept]] = rows_GE[kept]
    return x_RE


def take_rows(x_RE: Tensor, index_G: Tensor, *, scale: Tensor | None = None) -> Tensor:
    """A copy of x's rows `index` (int64, -1 for a row of zeros), G x E, times `scale` (one number) if there is one."""
    if not len(x_RE):
        return x_RE.new_zeros(len(index_G), x_RE.shape[1])
    rows_GE = x_RE[index_G.clamp(min=0)].masked_fill((index_G < 0)[:, None], 0)
    return rows_GE if scale is None else (rows_GE.to(scale.dtype) * scale).to(x_RE.dtype)


def _rows_in_float32(x_RE: Tensor, index_G: Tensor | None) -> Tensor:
    precise = torch.promote_types(x_RE.dtype, torch.float32)
    if index_G is None:
        return x_RE.to(precise)
    return x_RE[index_G.clamp(min=0)].to(precise).masked_fill((index_G < 0)[:, None], 0)


def rotary(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, *, transposed: bool = False) -> Tensor:
    """Queries or keys turned by the angles of their positions, or back (`transposed`, as the gradient needs).

        (a, b) -> (a cos - b sin, b cos + a sin)          a in the first half of a head, b its partner in the second

    Args:
        cos_BTD, sin_BTD: of every entry's angle; a batch of 1 serves every sequence.
    """
    precise = torch.promote_types(x_BHTD.dtype, torch.float32)
    x, cos, sin = x_BHTD.to(precise), cos_BTD[:, None].to(precise), sin_BTD[:, None].to(precise)
    half = x.shape[-1] // 2
    if transposed:
        turned = x * sin
        across = torch.cat((turned[..., half:], -turned[..., :half]), dim=-1)
    else:
        across = torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin
    return torch.empty_like(x_BHTD).copy_(x * cos + across)
