"""Exports: deterministic shards that open_clip's own loader reads unchanged."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from histolake.platform.errors import UsageError
from histolake.platform.export import ExportSpec, export
from histolake.platform.lake import Lake
from histolake.platform.storage import Location


def with_pictures(rows: pa.Table) -> pa.Table:
    """The same rows with real JPEGs for patches."""
    pictures = []
    for number in range(rows.num_rows):
        buffer = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), number * 3 % 255, np.uint8)).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    place = rows.schema.get_field_index("spot_image")
    return rows.set_column(place, rows.schema.field(place), pa.array(pictures, pa.binary()))


@pytest.fixture
def filled(lake: Lake, writer: ModuleType) -> Lake:
    """Two slides of 30 pairs with real pictures."""
    for name in ("c/a", "c/b"):
        attempt = lake.begin(name, source_digest="1", settings_digest="s", source=name)
        fragment = attempt.pairs.write(with_pictures(writer.rows(name, "1", 30)))
        attempt.stage({"n_spots": 30, "simulated": True}, [fragment], pa.table({"rule": pa.array([], "string")}))
        lake.publish([attempt])
    return lake


def test_shards_and_manifest(filled: Lake, tmp_path: Path) -> None:
    place = Location.parse(tmp_path / "shards")
    spec = ExportSpec(name="all", rows_per_shard=25)
    manifest = export(filled.at(), spec, place)
    assert [shard["rows"] for shard in manifest.shards] == [25, 25, 10]
    assert manifest.pairs == 60 and manifest.lake_version == 2 and manifest.simulated and manifest.left_out == 0
    for shard in manifest.shards:
        assert hashlib.sha256((tmp_path / "shards" / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]
    with tarfile.open(tmp_path / "shards" / manifest.shards[0]["name"]) as shard:
        about = [
            json.load(file) for name in shard.getnames() if name.endswith(".json") and (file := shard.extractfile(name))
        ]
    assert len(about) == 25 and all(row["simulated"] is True and row["slide_id"] == "c/a" for row in about)
    assert export(filled.at(), spec, place).reused
    again = export(filled.at(), spec, Location.parse(tmp_path / "again"))
    assert [s["sha256"] for s in again.shards] == [s["sha256"] for s in manifest.shards], "equal specs, equal shards"
    with pytest.raises(UsageError, match="another export"):
        export(filled.at(), ExportSpec(name="all", rows_per_shard=10), place)


def test_a_folder_with_other_files_is_left_alone(filled: Lake, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.docx").write_bytes(b"years of work")
    with pytest.raises(UsageError, match="holds other files"):
        export(filled.at(), ExportSpec(name="all"), Location.parse(tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.docx").exists()


def test_an_export_that_did_not_finish_is_made_again(filled: Lake, tmp_path: Path) -> None:
    place = Location.parse(tmp_path / "shards")
    place.join("all-000000.tar").write_bytes(b"half a shard")
    place.join("all-000009.tar").write_bytes(b"half a shard")
    assert len(export(filled.at(), ExportSpec(name="all"), place).shards) == 1
    assert not place.join("all-000009.tar").exists()


def test_open_clip_reads_the_shards_unchanged(filled: Lake, tmp_path: Path) -> None:
    from histolake.training.torchvision_shim import import_torchvision

    import_torchvision()
    import open_clip
    from open_clip_train.data import get_wds_dataset

    manifest = export(filled.at(), ExportSpec(name="all", rows_per_shard=20), Location.parse(tmp_path / "shards"))
    last = manifest.shards[-1]["name"].removesuffix(".tar").rsplit("-", 1)[1]
    args = SimpleNamespace(
        train_data=str(tmp_path / "shards" / f"all-{{000000..{last}}}.tar"),
        train_data_upsampling_factors=None,
        train_num_samples=manifest.pairs,
        dataset_resampled=False,
        seed=0,
        batch_size=10,
        workers=1,
        world_size=1,
    )
    preprocess = open_clip.image_transform(32, is_train=False)
    loader = get_wds_dataset(args, preprocess, True, tokenizer=open_clip.get_tokenizer("ViT-B-32")).dataloader
    images, texts = next(iter(loader))
    assert images.shape == (10, 3, 32, 32) and texts.shape == (10, 77)
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text())["pairs"] == 60
