"""Errors of the command line: each is one clear line for a person, and exit code 1."""

from __future__ import annotations

__all__ = ["HeadgateError"]


class HeadgateError(Exception):
    """Says what was wrong, the value, and what would be right."""
