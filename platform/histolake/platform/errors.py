"""Every error that histolake raises on purpose.

A message is one clear sentence: what was found, what was expected, what to do. The command line prints that sentence
and ends with the error's `exit_code`; `--debug` shows the traceback too. Anything else that is raised is a defect.

    HistolakeError
    ├── UsageError             the caller asked for something that cannot be
    │   ├── SettingsError      a setting has a value that it may not have
    │   ├── LocationError      a URI that we cannot read or write
    │   └── SplitError         a split that leaks, or names slides that are not there
    ├── SourceError            a source that is refused, by rule, with the figure that broke it
    ├── LakeError
    │   ├── LakeNotFoundError
    │   ├── VersionError       a lake version that does not exist
    │   ├── SlideNotFoundError
    │   ├── ConflictError      another writer won, again and again
    │   ├── IntegrityError     the lake does not hold what its catalogue says
    │   └── StoreError         the place where the lake lies fails, or does not do what a lake needs
    ├── DownloadError          a public file that cannot be had, or is not the one that it must be
    ├── ModelError             a model that is not there, or does not fit what is asked of it
    └── ServiceError           a served answer that is an error
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "ConflictError",
    "DownloadError",
    "HistolakeError",
    "IntegrityError",
    "LakeError",
    "LakeNotFoundError",
    "LocationError",
    "ModelError",
    "ServiceError",
    "SettingsError",
    "SlideNotFoundError",
    "SourceError",
    "SplitError",
    "StoreError",
    "UsageError",
    "VersionError",
]


class HistolakeError(Exception):
    """The root. `exit_code` is what the command line ends with."""

    exit_code: int = 2


class UsageError(HistolakeError):
    """The caller asked for something that cannot be."""


class SettingsError(UsageError):
    """A setting has a value that it may not have."""


class LocationError(UsageError):
    """A URI that cannot be parsed, read or written."""


class SplitError(UsageError):
    """A split that would leak between its sides, or that names slides that are not in the lake."""


class SourceError(HistolakeError):
    """A source (or one spot of it) that is refused.

    Becomes a row in `catalog/rejections`. `rule` names the quality rule, `figure` is what was measured, `limit` what
    the rule asks for, `file` the file that broke it. `known` are columns of the catalogue that were known by then.
    """

    def __init__(
        self,
        message: str,
        *,
        rule: str,
        figure: float | None = None,
        limit: float | None = None,
        file: str | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.rule = rule
        self.figure = figure
        self.limit = limit
        self.file = file
        self.known = dict(known or {})

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword-only fields when the error crosses a process border."""
        said = {"rule": self.rule, "figure": self.figure, "limit": self.limit, "file": self.file, "known": self.known}
        return (_source_error, (str(self), said))


def _source_error(message: str, said: dict[str, Any]) -> SourceError:
    return SourceError(message, **said)


class DownloadError(HistolakeError):
    """A public file that cannot be had, or that is not the one that it must be."""

    exit_code = 1


class LakeError(HistolakeError):
    """Something about the lake itself."""


class LakeNotFoundError(LakeError):
    """No lake at the URI."""


class VersionError(LakeError):
    """The lake has no such version."""


class SlideNotFoundError(LakeError):
    """The lake has no such slide, patient or study."""


class ConflictError(LakeError):
    """Other writers won every attempt to commit."""

    exit_code = 1


class IntegrityError(LakeError):
    """The lake does not hold what its catalogue says."""

    exit_code = 1


class StoreError(LakeError):
    """The place where the lake lies failed (it is full, forbidden or out of reach), or does not do what a lake needs of
    it. No section is to blame for it."""

    exit_code = 1


class ModelError(HistolakeError):
    """A model that is not there, or does not fit what is asked of it."""


class ServiceError(HistolakeError):
    """The service answered with an error, or did not answer."""

    exit_code = 1
