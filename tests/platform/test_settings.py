"""Settings: flags beat the environment, which beats the file, which beats the defaults; secrets stay secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from histolake.platform.errors import SettingsError
from histolake.platform.settings import load_settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def sources(overrides: dict[str, object] | None = None) -> dict[str, tuple[str, str]]:
    return {row.name: (row.value, row.source) for row in load_settings(overrides).describe()}


def test_order_of_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources()["quality.min_genes"] == ("200", "default")
    (tmp_path / "histolake.toml").write_text('lake = "/from/file"\n[quality]\nmin_genes = 210\nmin_spots = 9\n')
    assert sources()["quality.min_genes"] == ("210", "file")
    monkeypatch.setenv("HISTOLAKE_QUALITY__MIN_GENES", "220")
    assert sources()["quality.min_genes"] == ("220", "environment")
    assert sources({"quality.min_genes": 230})["quality.min_genes"] == ("230", "flag")
    settings = load_settings({"quality.min_genes": 230, "lake": None})
    assert settings.section("quality").min_genes == 230 and settings.section("quality").min_spots == 9
    assert settings.lake == "/from/file"


def test_a_file_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[patches]\njpeg_quality = 70\n")
    monkeypatch.setenv("HISTOLAKE_CONFIG", str(other))
    assert load_settings().section("patches").jpeg_quality == 70
    monkeypatch.setenv("HISTOLAKE_CONFIG", str(tmp_path / "nothing.toml"))
    with pytest.raises(SettingsError, match="not a file"):
        load_settings()


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTOLAKE_STORE__SECRET_KEY", "open-sesame")
    assert "open-sesame" not in str(sources())
    assert load_settings().section("store").resolved()["secret_key"] == "open-sesame"


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTOLAKE_QUALITY__MIN_GENES", "many")
    with pytest.raises(SettingsError, match=r"quality\.min_genes.*integer"):
        load_settings()
    monkeypatch.delenv("HISTOLAKE_QUALITY__MIN_GENES")
    (tmp_path / "histolake.toml").write_text("[quality]\nmin_gene = 1\n")
    with pytest.raises(SettingsError, match="min_gene"):
        load_settings()
    (tmp_path / "histolake.toml").write_text("not toml")
    with pytest.raises(SettingsError, match=r"histolake\.toml"):
        load_settings()


def test_aws_variables_reach_every_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from histolake.platform.storage import Location

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    place = Location.parse("s3://bucket/lake/")
    assert place.uri == "s3://bucket/lake"
    lance, delta = place.lance_options(), place.delta_options()
    assert lance is not None and delta is not None
    assert lance["aws_endpoint"] == delta["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9"
    assert lance["allow_http"] == "true" and delta["AWS_SECRET_ACCESS_KEY"] == "key"
    monkeypatch.setenv("HISTOLAKE_STORE__ENDPOINT", "http://127.0.0.1:8")
    overridden = Location.parse("s3://bucket/lake").lance_options()
    assert overridden is not None and overridden["aws_endpoint"] == "http://127.0.0.1:8"
