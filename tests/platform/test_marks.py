"""What is said beside a figure: the worst of what ties a slide to those that were trained on."""

from __future__ import annotations

from typing import Any

from histolake.platform.splits import marks


def row(slide_id: str, patient: str | None, *alike: str, study: str | None = "s") -> dict[str, Any]:
    return {"slide_id": slide_id, "cohort": "c", "study": study, "patient": patient, "look_alikes": list(alike)}


def test_marks_of_every_tie() -> None:
    trained = [row("c/1", "P1"), row("c/2", "P2", "c/7"), row("c/3", None, study="other")]
    asked = [
        row("c/1", "P1"),
        row("c/4", "P1"),
        row("c/5", None),
        row("c/6", "P9", "c/2"),
        row("c/7", "P9"),
        row("c/8", "P1", study="third"),
        row("c/9", "P3", study="other"),
        row("c/10", "P1", "c/2"),
    ]
    assert marks(asked, trained) == {
        "c/1": ["same section"],
        "c/4": ["same patient"],
        "c/5": ["same study, patient not known"],
        "c/6": ["look-alike of a training slide"],
        "c/7": ["look-alike of a training slide"],
        "c/8": [],
        "c/9": ["same study, patient not known"],
        "c/10": ["same patient", "look-alike of a training slide"],
    }
    assert marks(asked[5:6], []) == {"c/8": []}
