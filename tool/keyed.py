"""Keyed randomness: every draw has a name, so that workers, ranks and restarts do not change it."""

from __future__ import annotations

import hashlib


def seed_of(*parts: object) -> int:
    """A seed in [0, 2**63) from `parts` (numbers and strings): equal parts, equal seed."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
