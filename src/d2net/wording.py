"""Words for messages."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """Number and noun: "1 photo", "1,200 photos", "2 matches"."""
    plural = "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"
