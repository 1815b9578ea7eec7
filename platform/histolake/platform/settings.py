"""One settings object, and where each value came from.

Order of authority: flags (`overrides`) beat the environment (`HISTOLAKE_*`), the environment beats a TOML file, the
file beats the defaults. The sections are frozen dataclasses that stand beside the code they configure; each part
declares its own in the entry-point group `histolake.settings`, so nothing here knows what a quality rule is.

    HISTOLAKE_LAKE=s3://atlas/lake                      a value of the top level
    HISTOLAKE_QUALITY__MIN_GENES=300                    a value of the section "quality"
    [quality]                                           the same in histolake.toml
    min_genes = 300

The file is the one named by HISTOLAKE_CONFIG, else ./histolake.toml, else histolake/config.toml below the user's
configuration folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

from pydantic import SecretStr, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from histolake.platform.errors import SettingsError

__all__ = ["Setting", "Settings", "load_settings"]

ENV_PREFIX = "HISTOLAKE_"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One value as `histolake settings` shows it. `source` is flag, environment, file or default."""

    name: str
    value: str
    source: str
    env: str


class _Base(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, case_sensitive=False
    )
    toml_file: ClassVar[Path | None] = None

    lake: str | None = None
    sample_dir: str | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=cls.toml_file))


@cache
def _sections() -> dict[str, type[Any]]:
    """Section name -> frozen dataclass, from the entry points of every installed part."""
    return {
        entry.name: entry.load() for entry in sorted(entry_points(group="histolake.settings"), key=lambda e: e.name)
    }


@lru_cache(maxsize=4)
def _model(file: Path | None) -> type[_Base]:
    sections: dict[str, Any] = {name: (kind, FieldInfo(default_factory=kind)) for name, kind in _sections().items()}
    model = create_model("HistolakeSettings", __base__=_Base, **sections)
    model.toml_file = file
    return model


def _config_file(environ: Mapping[str, str]) -> Path | None:
    named = environ.get("HISTOLAKE_CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise SettingsError(f"HISTOLAKE_CONFIG names {path}, which is not a file; create it or unset the variable.")
        return path
    home = Path(environ.get("XDG_CONFIG_HOME", "~/.config")).expanduser()
    for path in (Path("histolake.toml"), home / "histolake" / "config.toml"):
        if path.is_file():
            return path
    return None


def _nested(overrides: Mapping[str, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


class Settings:
    """All settings of one process. Make it with `load_settings`, then hand each leaf the section it needs."""

    def __init__(self, model: _Base, layers: list[tuple[str, dict[str, Any]]], file: Path | None) -> None:
        self._model = model
        self._layers = layers
        self.file = file

    @property
    def lake(self) -> str | None:
        """The lake's URI, if one is set."""
        return self._model.lake

    @property
    def sample_dir(self) -> str | None:
        """A folder of real sections for `histolake sample`, if one is set."""
        return self._model.sample_dir

    def section(self, name: str) -> Any:
        """The frozen dataclass of one section, such as `quality` or `patches`."""
        if name not in _sections():
            raise SettingsError(f"There is no settings section {name!r}; there are {', '.join(_sections())}.")
        return getattr(self._model, name)

    def describe(self) -> list[Setting]:
        """Every value, where it came from, and the variable that would set it. Secrets are masked."""
        rows = [self._row(("lake",), self._model.lake), self._row(("sample_dir",), self._model.sample_dir)]
        for name in _sections():
            section = self.section(name)
            rows += [self._row((name, field.name), getattr(section, field.name)) for field in fields(section)]
        return rows

    def _row(self, path: tuple[str, ...], value: object) -> Setting:
        source = next((layer for layer, tree in self._layers if _has(tree, path)), "default")
        shown = str(value) if isinstance(value, SecretStr) else "" if value is None else str(value)
        return Setting(name=".".join(path), value=shown, source=source, env=ENV_PREFIX + "__".join(path).upper())


def _has(tree: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    node: Any = tree
    for part in path:
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def load_settings(overrides: Mapping[str, object] | None = None) -> Settings:
    """Read the settings of this process.

    `overrides` are the flags: dotted names to values (`{"quality.min_genes": 300}`); a None is "not given".
    Raises `SettingsError` that lists every value at fault.
    """
    file = _config_file(os.environ)
    if overrides:
        return _load(file, overrides)
    changed_ns = 0 if file is None else file.stat().st_mtime_ns
    environ = tuple(sorted((key, value) for key, value in os.environ.items() if key.upper().startswith(ENV_PREFIX)))
    return _as_it_stands(None if file is None else file.resolve(), changed_ns, environ)


@lru_cache(maxsize=4)
def _as_it_stands(file: Path | None, changed_ns: int, environ: tuple[tuple[str, str], ...]) -> Settings:
    """The settings without flags, read again when the file or the environment is another: every place that a location
    is parsed at asks for them."""
    return _load(file, {})


def _load(file: Path | None, overrides: Mapping[str, object]) -> Settings:
    model = _model(file)
    flags = _nested({key: value for key, value in overrides.items() if value is not None})
    try:
        values = model(**flags)
        layers = [
            ("flag", InitSettingsSource(model, init_kwargs=flags)()),
            ("environment", EnvSettingsSource(model)()),
            ("file", TomlConfigSettingsSource(model, toml_file=file)()),
        ]
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SettingsError(f"Settings cannot be read: {faults}. `histolake settings` lists what there is.") from error
    except ValueError as error:
        raise SettingsError(f"Settings cannot be read from {file or 'the environment'}: {error}.") from error
    return Settings(values, layers, file)
