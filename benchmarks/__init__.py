"""Measurements. Each prints and keeps what it ran on: hardware, versions, commit, settings, medians with spread."""
