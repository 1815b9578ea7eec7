"""The audit: does the lake hold what its catalogue says? `check.py` asks, `rows.py` knows pairs, `files.py` files."""

from histolake.platform.lake.audit.check import check
from histolake.platform.lake.audit.findings import Finding

__all__ = ["Finding", "check"]
