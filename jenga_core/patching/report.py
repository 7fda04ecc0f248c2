"""What the method did in the last training forward: in words, as a table in a terminal, as a map in a notebook.

report = handle.report()
print(report)            a line for each span of layers
rich.print(report)       the same as a table (so does IPython with rich's pretty printer)
report                   in a notebook: layers x blocks, involved ones filled
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich belongs to the command line; the method works where it is missing
    from rich.console import RenderableType
    from torch import Tensor

    from jenga_core.patching.involvement import Involvement

_CELL, _LABEL, _SHARE, _WIDEST = 7, 34, 90, 900
"""Pixels of the map: a cell's height, the layer numbers, the bars of shares, and all blocks of a layer at most."""


@dataclass(frozen=True)
class Span:
    """Layers that share one selection, and its blocks in the first sequence of the batch."""

    first_layer: int
    last_layer: int
    blocks: tuple[int, ...]

    targets: tuple[int, ...] = ()
    """Of them, those that are kept to be learnt from, whatever they score."""


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
        lines = [f"jenga: {self._summary()}"]
        for span in self._runs():
            where = f"  layers {span.first_layer:>3} - {span.last_layer:<3}"
            share = f"{self.kept_fraction[span.first_layer]:.0%} of tokens involved"
            involved = f"{share}, blocks {' '.join(map(str, span.blocks))}" if span.blocks else "every token involved"
            lines.append(f"{where} {involved}")
        return "\n".join(lines)

    def __rich__(self) -> RenderableType:
        """For rich: one row for each span of layers."""
        from rich.console import Group
        from rich.table import Table

        heading = f"jenga: {self._summary()}"
        if not self.kept_fraction:
            return heading
        table = Table(box=None, pad_edge=False)
        for name in ("layers", "tokens involved", "of MLPs"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("blocks involved")
        for span in self._runs():
            first = span.first_layer
            shares = (f"{fractions[first]:.0%}" for fractions in (self.kept_fraction, self.mlp_kept_fraction))
            table.add_row(f"{first}-{span.last_layer}", *shares, _ranges(span.blocks) if span.blocks else "all")
        return Group(heading, table)

    def _repr_html_(self) -> str:
        """For a notebook: a drawing (SVG) of layers x blocks beside each layer's share of tokens. No scripts."""
        title = f"<p><b>jenga</b>: {escape(self._summary())}</p>"
        if not self.kept_fraction or not self.num_blocks:
            return title
        layers, width = len(self.kept_fraction), max(2.0, min(float(_CELL), _WIDEST / self.num_blocks))
        right, bottom = _LABEL + width * self.num_blocks, _CELL * layers
        shapes = [f'<rect x="{_LABEL}" width="{right - _LABEL:g}" height="{bottom}" fill="#8884" />']
        for layer, blocks in enumerate(self._blocks_by_layer()):
            y = _CELL * (layers - 1 - layer)  # layer 0 lies at the bottom, as the model is drawn
            shapes += [
                f'<rect x="{_LABEL + width * first:g}" y="{y}" width="{width * (last + 1 - first):g}" '
                f'height="{_CELL - 1}" fill="#3b76c4"><title>layer {layer}, blocks {first}-{last}</title></rect>'
                for first, last in _runs_of(blocks)
            ]
            share = self.kept_fraction[layer]
            shapes.append(
                f'<rect x="{right + 10:g}" y="{y}" width="{_SHARE * share:g}" height="{_CELL - 1}" fill="#3b76c4">'
                f"<title>layer {layer}: {share:.0%} of tokens involved</title></rect>"
            )
            if layer % 8 == 0:
                shapes.append(f'<text x="{_LABEL - 5}" y="{y + _CELL}" text-anchor="end">{layer}</text>')
        labels = (
            f'<text x="{_LABEL}" y="{bottom + 14}">block 0</text>'
            f'<text x="{right:g}" y="{bottom + 14}" text-anchor="end">{self.num_blocks - 1}</text>'
            f'<text x="{right + 10:g}" y="{bottom + 14}">tokens involved</text>'
        )
        return (
            f'{title}<svg role="img" aria-label="{escape(self._summary())}" width="{right + 20 + _SHARE:g}" '
            f'height="{bottom + 20}" font-family="sans-serif" font-size="10" fill="currentColor">'
            f"{''.join(shapes)}{labels}</svg>"
        )

    def _summary(self) -> str:
        if not self.enabled:
            return "off (dense)"
        if not self.kept_fraction:
            return f"on from layer {self.entry_layer}, {self.score} scores; no training forward yet"
        mean = sum(self.kept_fraction) / len(self.kept_fraction)
        return f"{mean:.0%} of token-layers involved, {self.score} scores, {self.num_blocks} blocks"

    def _runs(self) -> Iterator[Span]:
        """All layers from 0 on, in spans; one without blocks involves every token."""
        covered = 0
        for span in self.spans:
            if span.first_layer > covered:
                yield Span(covered, span.first_layer - 1, ())
            yield span
            covered = span.last_layer + 1
        if covered < len(self.kept_fraction):
            yield Span(covered, len(self.kept_fraction) - 1, ())

    def _blocks_by_layer(self) -> Iterator[tuple[int, ...]]:
        for span in self._runs():
            for _ in range(span.first_layer, span.last_layer + 1):
                yield span.blocks or tuple(range(self.num_blocks))


def report_on(involvement: Involvement, score: str) -> JengaReport:
    """The report on one forward call, of its first sequence's blocks and the whole batch's shares. Waits for the GPU.

    Args:
        score: where its block scores came from.
    """
    fractions, spans = [1.0] * involvement.num_layers, []
    targets = () if involvement.target_BN is None else _numbers(involvement.target_BN[0])
    chosen = sorted(involvement.selections)
    ends = [layer - 1 for layer in chosen[1:]] + [involvement.num_layers - 1]
    for first, last in zip(chosen, ends, strict=True):
        selection = involvement.selections[first]
        if involvement.config.below_entry == "forward_only":
            first = 0  # the layers below were run again for the same tokens
        fractions[first : last + 1] = [float(selection.kept_fraction)] * (last + 1 - first)
        spans.append(Span(first, last, _numbers(selection.kept_BN[0]), targets))
    mlp_fractions = list(fractions)
    for layer, among in involvement.mlp_selections.items():
        mlp_fractions[layer] *= float(among.kept_fraction)
    return JengaReport(
        enabled=True,
        score=score,
        entry_layer=involvement.entry_layer,
        kept_fraction=tuple(fractions),
        mlp_kept_fraction=tuple(mlp_fractions),
        num_blocks=int((involvement.blocks.document_of_block_BN[0] >= 0).sum()),
        spans=tuple(spans),
    )


def _numbers(is_one_N: Tensor) -> tuple[int, ...]:
    return tuple(is_one_N.nonzero().flatten().tolist())


def _runs_of(blocks: tuple[int, ...]) -> list[tuple[int, int]]:
    """Sorted numbers as (first, last) of what is consecutive."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs


def _ranges(blocks: tuple[int, ...]) -> str:
    """`0-3 7 9-12`"""
    return " ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in _runs_of(blocks))
