"""What the doctor says: one row a probe, and what they mean together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Diagnosis", "Probe"]

# Without these several writers lose each other's rows; a single one does not.
AMONG_WRITERS = ("conditional put", "race", "create", "link")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One question to a store. `figure` is what was measured and `limit` what it may be, as text with their units;
    None where there is none."""

    probe: str
    ok: bool
    figure: str | None
    limit: str | None
    means: str  # one sentence: what was asked and what came; where it is not as it must be, what to do
    settled: bool = True  # False where the store was too slow or failed in passing, so that nothing is known


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that was found at a store."""

    store: str  # URI that was examined
    server: str  # what answers there, as it calls itself; the kind of file system on disk
    seconds: float
    probes: tuple[Probe, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as it must be."""
        return not self.failed()

    @property
    def holds_a_lake(self) -> bool:
        """Whether one writer and its readers are served right."""
        return all(probe.probe in AMONG_WRITERS for probe in self.failed())

    @property
    def keeps_writers_apart(self) -> bool:
        """Whether of several writers of one file exactly one succeeds."""
        return not any(probe.probe in AMONG_WRITERS for probe in self.failed())

    @property
    def is_open(self) -> bool:
        """Whether the store was only too slow, or failed in passing: no answer of its was wrong."""
        return not self.ok and not any(probe.settled for probe in self.failed())

    def failed(self) -> list[Probe]:
        """The probes that are not as they must be."""
        return [probe for probe in self.probes if not probe.ok]

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a probe."""
        return [asdict(probe) for probe in self.probes]

    def complaint(self, probes: Sequence[Probe] | None = None) -> str:
        """What is wrong, in one line."""
        return " ".join(f"{probe.probe}: {probe.means}" for probe in (self.failed() if probes is None else probes))
