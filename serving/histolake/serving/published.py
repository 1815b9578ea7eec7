"""A published model, pinned: which version it is, and where its folder lies on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from histolake.platform.settings import Settings, load_settings

__all__ = ["Published", "find_published"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """One version of one model. Small, so that it can be sent to a process on another machine."""

    uri: str  # models:/NAME/VERSION, or a folder
    name: str
    version: str  # empty for a folder
    folder: str  # where it was found on the machine that resolved it

    def local(self) -> Path:
        """The model's folder on this machine, fetched if it is not here."""
        folder = Path(self.folder)
        if (folder / "model.json").is_file():
            return folder
        return Path(find_published(self.uri, load_settings()).folder)


def find_published(uri: str, settings: Settings) -> Published:
    """Resolve an alias or a version to a pinned model. Raises `ModelError` if there is none."""
    from histolake.training.registry import resolve_model

    found = resolve_model(uri, settings.section("tracking"))
    return Published(uri=found.uri, name=found.name, version=found.version, folder=str(found.path.resolve()))
