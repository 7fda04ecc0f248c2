"""Opaque object ids: a readable prefix and 24 random characters, e.g. `ftjob-4kVvL...`. Never guessable, never a
path."""

import secrets
import string

_ALPHABET = string.digits + string.ascii_letters


def new_id(prefix: str) -> str:
    """`prefix` followed by 24 random base-62 characters (143 bits)."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(24))
