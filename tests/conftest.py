"""Settings that every test shares."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples everywhere: a failure in CI is a failure at every desk. HYPOTHESIS_PROFILE=default explores anew.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
