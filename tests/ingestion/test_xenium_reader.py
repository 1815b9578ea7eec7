"""The Xenium reader: cells onto the H&E through its alignment, pseudo-spots, controls left out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.ingestion.xenium_files import PIXEL_UM, TURNED, Bundle, histology, write_xenium

from histolake.ingestion.discover import find_sections
from histolake.ingestion.pipeline import ingest_settings
from histolake.ingestion.quality import QualitySettings, check_section, judge_spots
from histolake.ingestion.readers import Listing, Source, digest, reader
from histolake.ingestion.readers.alignment import Affine, read_matrix_csv
from histolake.ingestion.slide import Slide
from histolake.ingestion.worker import look
from histolake.platform.errors import SourceError
from histolake.platform.settings import load_settings
from histolake.platform.storage import Location


def found(folder: Path) -> Source:
    (source,) = reader("xenium").find(Listing(Location.parse(folder)))
    return source


def read(folder: Path, **metadata: Any) -> Slide:
    return reader("xenium").read(found(folder), metadata)


def refusal(folder: Path, **metadata: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        read(folder, **metadata)
    return caught.value


def by_name(slide: Slide, bundle: Bundle) -> np.ndarray:
    """The slide's row of each cell of the bundle."""
    at = {name: i for i, name in enumerate(slide.barcodes.tolist())}
    return np.array([at[name] for name in bundle.cell_ids])


@pytest.mark.parametrize(("matrix", "table"), [("h5", "parquet"), ("mtx", "csv")])
def test_cells_with_their_counts_and_no_controls(tmp_path: Path, matrix: str, table: str) -> None:
    bundle = write_xenium(tmp_path / "s", matrix=matrix, table=table, section={"spots": "cells"})
    slide = read(bundle.folder)
    rows = by_name(slide, bundle)
    assert slide.symbols == bundle.genes
    assert slide.ensembl_ids == [f"ENSG{g:011d}" for g in range(len(bundle.genes))]
    np.testing.assert_array_equal(slide.counts[rows].toarray(), bundle.counts)
    known = slide.metadata
    assert (known.technology, known.species, known.expression_unit) == ("Xenium", "human", "counts")
    assert (known.spot_diameter_um, known.pitch_um) == (20.0, 20.0)
    assert slide.flags == ()
    assert np.isnan(slide.array_row).all()
    check_section(slide)


def test_every_cell_lies_on_its_nucleus_in_the_image(tmp_path: Path) -> None:
    """The image shows a disc at each cell's place; it is drawn from the alignment's definition, not by the reader."""
    bundle = write_xenium(tmp_path / "s", cells=120, section={"spots": "cells"})
    slide = read(bundle.folder)
    assert slide.image is not None
    assert slide.image.endswith("S_he_image.ome.tif")
    pixels = np.asarray(Image.open(slide.image))
    x, y = np.rint(slide.xy_px).astype(int).T
    assert (pixels[y, x, 1] < 60).all()  # a disc's green, where tissue has 170
    assert (pixels[..., 1] < 60).mean() < 0.1
    np.testing.assert_allclose(
        (TURNED @ np.c_[slide.xy_px, np.ones(len(slide))].T)[:2].T[by_name(slide, bundle)] * PIXEL_UM, bundle.xy_um
    )


def test_the_scale_is_the_pixel_size_through_the_alignment(tmp_path: Path) -> None:
    bundle = write_xenium(tmp_path / "s")
    (evidence,) = read(bundle.folder).scales
    assert evidence.origin == "source"
    assert evidence.um_per_px == pytest.approx(PIXEL_UM * np.hypot(0.0098, 1.2896), rel=1e-6)
    assert evidence.file == str(bundle.folder / "S_he_imagealignment.csv")
    # Distances agree with it, whichever way the image is turned.
    slide = read(bundle.folder, spot_diameter_um="40", pitch_um="40")
    across = np.linalg.norm(slide.xy_px - slide.xy_px[0], axis=1) * evidence.um_per_px
    steps = np.stack([slide.array_col - slide.array_col[0], (slide.array_row - slide.array_row[0]) * np.sqrt(3)], 1)
    np.testing.assert_allclose(across, np.linalg.norm(steps, axis=1) * 20, atol=1e-6)


def test_pseudo_visium_conserves_the_counts(tmp_path: Path) -> None:
    bundle = write_xenium(tmp_path / "s", cells=2000, extent_um=700)
    circles = read(bundle.folder)
    assert (circles.metadata.spot_diameter_um, circles.metadata.pitch_um) == (55.0, 100.0)
    assert circles.flags[0] == "pseudo_spots"
    assert circles.flags[1].startswith("cells outside spots: 7")
    everything = write_xenium(tmp_path / "all", cells=2000, extent_um=700, section={"keep_all": True})
    slide = read(everything.folder)
    assert slide.flags == ("pseudo_spots",)
    np.testing.assert_array_equal(np.asarray(slide.counts.sum(axis=0)), bundle.counts.sum(axis=0))
    # In the micrometres of the bundle, each spot is the sum over the cells within 27.5 um of its centre.
    centres = (TURNED @ np.c_[circles.xy_px, np.ones(len(circles))].T)[:2].T * PIXEL_UM
    away = np.hypot(*(bundle.xy_um[None] - centres[:, None]).transpose(2, 0, 1))
    np.testing.assert_array_equal(circles.counts.toarray(), (away <= 27.5) @ bundle.counts)
    assert len(set(circles.barcodes.tolist())) == len(circles)
    np.testing.assert_array_equal(circles.array_row % 2, circles.array_col % 2)


def test_without_histology_the_morphology_is_the_frame(tmp_path: Path) -> None:
    bundle = write_xenium(tmp_path / "s", image=None, section={"spots": "cells"})
    slide = read(bundle.folder)
    assert slide.image is None
    assert [e.um_per_px for e in slide.scales] == [PIXEL_UM]
    np.testing.assert_allclose(slide.xy_px[by_name(slide, bundle)] * PIXEL_UM, bundle.xy_um)


def test_a_bundle_without_its_experiment_file(tmp_path: Path) -> None:
    bundle = write_xenium(tmp_path / "s", image=None)
    (bundle.folder / "experiment.xenium").unlink()
    assert [e.um_per_px for e in read(bundle.folder).scales] == [PIXEL_UM]


def test_an_image_without_alignment_is_refused_unless_it_is_aligned(tmp_path: Path) -> None:
    bundle = write_xenium(tmp_path / "s", alignment=None)
    error = refusal(bundle.folder)
    assert (error.rule, error.figure, error.limit) == ("image_alignment", 0.0, 1.0)
    assert error.file == str(bundle.folder / "S_he_image.ome.tif")
    assert "S_he_imagealignment.csv" in str(error)
    (bundle.folder / "section.json").write_text(json.dumps({"alignment": "identity", "spots": "cells"}))
    slide = read(bundle.folder)
    np.testing.assert_allclose(slide.xy_px[by_name(slide, bundle)] * PIXEL_UM, bundle.xy_um)
    assert slide.image == str(bundle.folder / "S_he_image.ome.tif")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,0,0\n0,1,0\n", "3 x 3"),
        ("1,0,0\n0,one,0\n0,0,1\n", "numbers"),
        ("1,0,0\n0,1,0\n1,0,1\n", "last row"),
        ("1,0,0\n0,1.5,0\n0,0,1\n", "stretches"),
        ("1,1,0\n1,1,0\n0,0,1\n", "stretches"),
        ("", "3 x 3"),
    ],
)
def test_a_matrix_that_is_none(tmp_path: Path, text: str, says: str) -> None:
    bundle = write_xenium(tmp_path / "s")
    (bundle.folder / "S_he_imagealignment.csv").write_text(text)
    error = refusal(bundle.folder)
    assert error.rule == "image_alignment"
    assert says in str(error)


def test_histology_beside_the_bundle_or_named(tmp_path: Path) -> None:
    bundle = write_xenium(tmp_path / "Breast_outs", section={"spots": "cells"})
    here = read(bundle.folder)
    for name, moved in (("S_he_image.ome.tif", "Breast_he_image.ome.tif"),):
        (bundle.folder / name).rename(tmp_path / moved)
        (bundle.folder / "S_he_imagealignment.csv").rename(tmp_path / "Breast_he_imagealignment.csv")
    beside = read(bundle.folder)
    assert beside.image == str(tmp_path / "Breast_he_image.ome.tif")
    np.testing.assert_allclose(beside.xy_px, here.xy_px)
    (tmp_path / "scans").mkdir()
    for name in ("Breast_he_image.ome.tif", "Breast_he_imagealignment.csv"):
        (tmp_path / name).rename(tmp_path / "scans" / name)
    assert read(bundle.folder).image is None
    named = read(bundle.folder, image=str(tmp_path / "scans/Breast_he_image.ome.tif"))
    np.testing.assert_allclose(named.xy_px, here.xy_px)
    (bundle.folder / "section.json").write_text(
        json.dumps({"image": "../scans/Breast_he_image.ome.tif", "spots": "cells"})
    )
    np.testing.assert_allclose(read(bundle.folder).xy_px, here.xy_px)


def test_two_images_are_not_guessed_between(tmp_path: Path) -> None:
    bundle = write_xenium(tmp_path / "s")
    (bundle.folder / "S_he_image.tif").write_bytes(b"the same picture before its pyramid was made")
    assert (read(bundle.folder).image or "").endswith("S_he_image.ome.tif")
    Image.fromarray(histology(np.empty((0, 2)), np.eye(3), 50)).save(bundle.folder / "T_he_image.tif")
    error = refusal(bundle.folder)
    assert (error.rule, error.figure) == ("image_alignment", 2.0)
    assert "T_he_image.tif" in str(error)


def test_cells_without_a_place_are_told(tmp_path: Path) -> None:
    import pandas as pd

    bundle = write_xenium(tmp_path / "s", section={"spots": "cells"})
    table = pd.read_parquet(bundle.folder / "cells.parquet")
    table.loc[3, "x_centroid"] = np.nan
    table.drop(index=[10, 11]).to_parquet(bundle.folder / "cells.parquet", index=False)
    slide = read(bundle.folder)
    assert {spot.barcode for spot in slide.refused} == {bundle.cell_ids[i] for i in (3, 10, 11)}
    assert {spot.rule for spot in slide.refused} == {"spot_position"}
    assert slide.n_read == 300


def test_cells_numbered_as_in_the_first_version(tmp_path: Path) -> None:
    import h5py
    import pandas as pd

    bundle = write_xenium(tmp_path / "s", section={"spots": "cells"})
    table = pd.read_parquet(bundle.folder / "cells.parquet")
    number = {name: i + 1 for i, name in enumerate(bundle.cell_ids)}
    table["cell_id"] = [number[name] for name in table["cell_id"]]
    table.to_parquet(bundle.folder / "cells.parquet", index=False)
    with h5py.File(bundle.folder / "cell_feature_matrix.h5", "r+") as file:
        names = [str(number[name.decode()]) for name in file["matrix/barcodes"][:]]
        del file["matrix/barcodes"]
        file["matrix/barcodes"] = np.array(names, dtype="S")
    assert not read(bundle.folder).refused


def test_what_is_missing_or_damaged(tmp_path: Path) -> None:
    for name in ("cells.parquet", "cell_feature_matrix.h5"):
        bundle = write_xenium(tmp_path / name, image=None)
        data = (bundle.folder / name).read_bytes()
        (bundle.folder / name).write_bytes(data[: len(data) // 2])
        assert refusal(bundle.folder).rule == "file_complete"
        (bundle.folder / name).unlink()
        error = refusal(bundle.folder)
        assert error.rule == "missing_file"
        assert name.split(".")[0] in str(error)
    bundle = write_xenium(tmp_path / "s", image=None)
    (bundle.folder / "experiment.xenium").write_text("{")
    assert refusal(bundle.folder).rule == "file_complete"
    (bundle.folder / "experiment.xenium").write_text('{"pixel_size": "small"}')
    assert refusal(bundle.folder).rule == "metadata_valid"


@pytest.mark.parametrize("said", [{"spots": "bins"}, {"spot_diameter_um": 120}, {"um_per_px": "wide"}])
def test_metadata_that_cannot_be(tmp_path: Path, said: dict[str, Any]) -> None:
    bundle = write_xenium(tmp_path / "s", image=None, section=said)
    error = refusal(bundle.folder)
    assert (error.rule, error.file) == ("metadata_valid", str(bundle.folder / "section.json"))


def test_how_cells_become_spots_is_part_of_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_xenium(tmp_path / "s", image=None)
    before = digest(found(bundle.folder), {})
    monkeypatch.setenv("HISTOLAKE_XENIUM__SPOTS", "cells")
    assert digest(found(bundle.folder), {}) != before
    assert len(read(bundle.folder)) == 300
    monkeypatch.setenv("HISTOLAKE_XENIUM__SPOTS", "pooled")
    assert digest(found(bundle.folder), {}) == before


def test_a_panel_passes_with_a_limit_of_its_own(tmp_path: Path) -> None:
    bundle = write_xenium(tmp_path / "s", cells=6000, extent_um=1000, image=None)
    slide = read(bundle.folder)
    with pytest.raises(SourceError, match="0 of"):
        judge_spots(slide, QualitySettings())
    kept, _ = judge_spots(slide, QualitySettings(min_genes=40))
    assert len(kept) > 80


def test_other_folders_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "cells.parquet").write_bytes(b"PAR1")
    (tmp_path / "morphology.ome.tif").write_bytes(b"II*\0")
    assert not reader("xenium").find(Listing(Location.parse(tmp_path)))


def test_an_affine_and_its_inverse(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in TURNED))
    affine = read_matrix_csv(str(path))
    points = np.random.default_rng(0).uniform(0, 1000, (20, 2))
    np.testing.assert_allclose(affine.inverse()(affine(points)), points)
    np.testing.assert_allclose(affine.then(affine.inverse()).matrix, np.eye(3), atol=1e-12)
    assert affine.stretch == pytest.approx(1.0, abs=1e-3)
    assert Affine.identity().scale == 1.0


def test_the_pipeline_takes_it_in_with_a_limit_for_panels(tmp_path: Path) -> None:
    write_xenium(tmp_path / "in/s", cells=1500, extent_um=240, section={"pitch_um": 20, "spot_diameter_um": 20})
    (candidate,) = find_sections([str(tmp_path / "in")], "c")
    with pytest.raises(SourceError, match=r"quality\.min_genes") as caught:
        look(candidate, None, ingest_settings(load_settings()))
    assert caught.value.rule == "min_spots"
    told = look(candidate, None, ingest_settings(load_settings({"quality.min_genes": 20})))
    assert told.n_kept > 100
    record = told.record
    assert (record["technology"], record["reader"], record["scale_from"]) == ("Xenium", "xenium", "source")
    assert record["um_per_px"] == pytest.approx(PIXEL_UM * 1.2896, rel=1e-4)
