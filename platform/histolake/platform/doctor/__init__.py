"""The doctor: whether a store does what a lake needs of it, asked of the store itself.

    diagnosis = examine(Location.parse("s3://bucket/lake"))
    diagnosis.ok, diagnosis.keeps_writers_apart, diagnosis.rows()

Names are imported when they are asked for, so that `import histolake.platform.doctor` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["Diagnosis", "Probe", "examine", "require_conditional_put"]

_WHERE = {
    "Diagnosis": "histolake.platform.doctor.diagnosis",
    "Probe": "histolake.platform.doctor.diagnosis",
    "examine": "histolake.platform.doctor.examination",
    "require_conditional_put": "histolake.platform.lake.admission",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
