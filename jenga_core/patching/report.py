"""What the method did in the last training forward, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Layers that share one selection, and its blocks in the first sequence of the batch."""

    first_layer: int
    last_layer: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class JengaReport:
    """`print(report)` for people, the fields for programs."""

    enabled: bool
    score: str
    """Where block scores came from: `exact`, `predicted`, `random`, `recent`."""

    entry_layer: int
    kept_fraction: tuple[float, ...]
    """Share of real tokens involved, per layer, in the last training forward; empty before the first."""

    mlp_kept_fraction: tuple[float, ...]
    """Share of real tokens whose MLP is computed with gradient, per layer; differs from `kept_fraction` with MLP
    elimination only."""

    num_blocks: int
    """Blocks of the first sequence."""

    spans: tuple[Span, ...]
    """Layers in no span involve every token."""

    def __str__(self) -> str:
        if not self.enabled:
            return "jenga: off (dense)"
        if not self.kept_fraction:
            return f"jenga: on from layer {self.entry_layer}, {self.score} scores; no training forward yet"
        mean = sum(self.kept_fraction) / len(self.kept_fraction)
        lines = [f"jenga: {mean:.0%} of token-layers involved, {self.score} scores, {self.num_blocks} blocks"]
        covered = 0
        for span in self.spans:
            if span.first_layer > covered:
                lines.append(f"  layers {covered:>3} - {span.first_layer - 1:<3} every token involved")
            share = self.kept_fraction[span.first_layer]
            blocks = " ".join(map(str, span.blocks))
            lines.append(
                f"  layers {span.first_layer:>3} - {span.last_layer:<3} {share:.0%} of tokens involved, blocks {blocks}"
            )
            covered = span.last_layer + 1
        return "\n".join(lines)
