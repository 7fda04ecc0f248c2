"""How long the fake trainer's `steady` run is; the trainer itself cannot be imported, for it opens its pipe."""

STEADY_STEPS = 12
STEADY_SECONDS = 0.25
"""Per step."""
