"""Admission: may this request start, must it wait, or is it refused with a time to come back?

`Admission` is the whole of it for one actor, without I/O; the modules beside it are its parts.
"""

from __future__ import annotations

from policies.admission.contract import decide
from policies.admission.core import Admission
from policies.admission.lengths import HistoryLengths, MaxTokens, Oracle, OutputLengths
from policies.admission.margin import Margin
from policies.admission.reasons import HttpError, Reason, http_error
from policies.admission.verdict import Admit, Candidate, Decided, Defer, Policy, Refuse, Verdict
from policies.admission.worker_state import Reservation

__all__ = [
    "Admission",
    "Admit",
    "Candidate",
    "Decided",
    "Defer",
    "HistoryLengths",
    "HttpError",
    "Margin",
    "MaxTokens",
    "Oracle",
    "OutputLengths",
    "Policy",
    "Reason",
    "Refuse",
    "Reservation",
    "Verdict",
    "decide",
    "http_error",
]
