"""Where an encoder's weight file lies: the file that is named, else one in the folder of the settings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from histolake.platform.errors import ModelError
from histolake.training.models.frozen.facts import EncoderFacts

__all__ = ["RANDOM", "EncoderSettings", "file_digest", "find_weights"]

# In place of a file: weights drawn at random, to measure speed and memory with.
RANDOM = "random"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Weights of pretrained encoders that lie on this machine."""

    folder: str = ""  # path; a file an encoder, named after it: uni.bin, virchow2.safetensors, ...


def find_weights(facts: EncoderFacts, weights: str | Path = "") -> Path:
    """The encoder's weight file: `weights` if given, else the one of its name in `encoders.folder` of the settings.

    Raises `ModelError`: one sentence that says where the user gets the file and which setting names it.
    """
    if weights:
        path = Path(weights).expanduser()
        if path.is_file():
            return path
        problem = f"{path} is not there"
    else:
        from histolake.platform.settings import load_settings

        folder = load_settings().section("encoders").folder
        names = [facts.name.replace(":", "-") + suffix for suffix in SUFFIXES]
        found = [Path(folder).expanduser() / name for name in names] if folder else []
        for path in found:
            if path.is_file():
                return path
        problem = f"{folder} holds none of {', '.join(names)}" if folder else "no file is named"
    terms = "its owner hands them out to those who accept the terms" if facts.gated else f"licence: {facts.licence}"
    raise ModelError(
        f"The image encoder {facts.name!r} needs its weights, and {problem}: get them yourself from {facts.source} "
        f"({terms}; nothing is downloaded for you), and name the file, or put it as "
        f"{facts.name.replace(':', '-')}.bin into the folder that the setting encoders.folder "
        "(HISTOLAKE_ENCODERS__FOLDER) names."
    )


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
