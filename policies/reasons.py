"""Moved to `policies.admission.reasons`; here until everybody imports it from there."""

from __future__ import annotations

from policies.admission.reasons import HttpError, Reason, http_error

__all__ = ["HttpError", "Reason", "http_error"]
