"""Space Ranger's Visium sections: every version's files, which image is read, and every way to be refused."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csr_array
from tests.ingestion.space_ranger_files import (
    Visium,
    gene_features,
    write_h5,
    write_mtx,
    write_positions,
    write_space_ranger,
    write_visium_hd,
)

from histolake.ingestion.discover import find_sections
from histolake.ingestion.pipeline import ingest_settings
from histolake.ingestion.quality import QualitySettings, check_section, judge_spots
from histolake.ingestion.readers import Listing, Source, digest, reader, readers
from histolake.ingestion.readers.matrices import open_h5, read_matrix
from histolake.ingestion.scale import ScaleSettings, settle
from histolake.ingestion.slide import Slide
from histolake.ingestion.worker import look
from histolake.platform.errors import SourceError
from histolake.platform.settings import load_settings
from histolake.platform.storage import Location


def found(folder: Path) -> Source:
    sources = reader("space-ranger").find(Listing(Location.parse(folder)))
    assert len(sources) == 1
    return sources[0]


def read(folder: Path, **metadata: Any) -> Slide:
    return reader("space-ranger").read(found(folder), metadata)


def refusal(folder: Path, **metadata: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        read(folder, **metadata)
    return caught.value


def check_against(slide: Slide, truth: Visium, scale: float = 1.0) -> None:
    """Every spot under tissue is there with its own counts at its own place, in raster order."""
    assert sorted(slide.barcodes.tolist()) == truth.barcodes
    row_of = {barcode: i for i, barcode in enumerate(truth.barcodes)}
    np.testing.assert_array_equal(slide.counts.toarray(), truth.counts[[row_of[b] for b in slide.barcodes]])
    places = np.array([truth.where[b] for b in slide.barcodes])
    np.testing.assert_allclose(slide.xy_px, places[:, 3:] * scale, atol=1e-6)
    np.testing.assert_array_equal(slide.array_row, places[:, 1])
    np.testing.assert_array_equal(slide.array_col, places[:, 2])
    assert places[:, 1:3].tolist() == sorted(places[:, 1:3].tolist())
    assert slide.symbols == [name for _, name, _, _ in truth.features]
    assert slide.ensembl_ids == [gene for gene, _, _, _ in truth.features]


@pytest.mark.parametrize("matrix", ["h5", "mtx"])
@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_every_version(tmp_path: Path, version: int, matrix: str) -> None:
    truth = write_space_ranger(tmp_path / "s", version=version, matrix=matrix)
    slide = read(truth.folder)
    check_against(slide, truth)
    assert slide.image == str(truth.image)
    assert slide.flags == ()
    assert slide.metadata.species == "human"
    assert slide.metadata.technology == ("Visium CytAssist" if version == 3 else "Visium")
    assert (slide.metadata.spot_diameter_um, slide.metadata.pitch_um) == (55.0, 100.0)
    assert slide.metadata.expression_unit == "counts"
    assert slide.counts.dtype == np.float32
    assert {e.origin: e.um_per_px for e in slide.scales} == {
        "pitch": pytest.approx(2.0, rel=2e-3),
        "fiducial": pytest.approx(2.0),
    }


@pytest.mark.parametrize(("image", "scale"), [("hires", 400), ("lowres", 120)])
def test_a_reduced_copy_stands_for_an_absent_image(tmp_path: Path, image: str, scale: int) -> None:
    truth = write_space_ranger(tmp_path / "s", image=image)
    slide = read(truth.folder)
    factor = scale / max(truth.size_px)
    check_against(slide, truth, factor)
    assert slide.image == str(tmp_path / f"s/spatial/tissue_{image}_image.png")
    assert slide.flags == ("image_reduced",)
    assert [e.um_per_px for e in slide.scales] == [pytest.approx(2 / factor, rel=1e-3)] * 2
    settled = settle(slide, None, ScaleSettings())
    assert settled.metadata.um_per_px == pytest.approx(2 / factor, rel=1e-3)


def test_no_image_at_all(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", image=None)
    slide = read(truth.folder)
    check_against(slide, truth)
    assert (slide.image, slide.flags) == (None, ())


def test_the_image_is_recognised_by_its_size(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", image_name="b.png")
    Image.new("RGB", (300, 300)).save(truth.folder / "a_tissue_image.png")  # a better name, another size
    assert read(truth.folder).image == str(truth.folder / "b.png")
    (truth.folder / "b.png").unlink()
    slide = read(truth.folder)
    assert slide.image == str(truth.folder / "spatial/tissue_hires_image.png")
    assert slide.flags == ("image_reduced", "image_passed_over")


def test_the_instruments_own_picture_is_no_slide_image(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", version=3, image="hires")
    # As where the instrument's picture is all that Space Ranger was given: it has the full size.
    Image.new("RGB", truth.size_px).save(truth.folder / "spatial/cytassist_image.tiff")
    Image.new("RGB", truth.size_px).save(truth.folder / "S_CytAssist_image.tif")
    assert read(truth.folder).image == str(truth.folder / "spatial/tissue_hires_image.png")


def test_without_reduced_copies_the_positions_judge_the_image(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s")
    for name in ("hires", "lowres"):
        (truth.folder / f"spatial/tissue_{name}_image.png").unlink()
    assert read(truth.folder).image == str(truth.image)
    (truth.image or Path()).unlink()
    Image.new("RGB", (400, 400)).save(truth.folder / "small.png")
    slide = read(truth.folder)
    assert (slide.image, slide.flags) == (None, ("image_passed_over",))


def test_an_image_that_the_curator_names(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", image="hires")
    own = tmp_path / "elsewhere.png"
    Image.new("RGB", truth.size_px).save(own)
    slide = read(truth.folder, image=str(own))
    assert (slide.image, slide.flags) == (str(own), ())
    check_against(slide, truth)
    (truth.folder / "section.json").write_text(json.dumps({"image": "../elsewhere.png", "patient": "P1"}))
    beside = read(truth.folder)
    assert Path(beside.image or "").resolve() == own
    assert beside.metadata.patient == "P1"


def test_an_image_that_the_section_names_is_in_its_digest(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", image="hires")
    own = tmp_path / "elsewhere.png"
    Image.new("RGB", truth.size_px).save(own)
    (truth.folder / "section.json").write_text(json.dumps({"image": str(own)}))
    before = digest(found(truth.folder), {})
    own.write_bytes(own.read_bytes() + b" ")
    assert digest(found(truth.folder), {}) != before


def test_a_broken_image_beside_is_told_and_not_passed_over(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s")
    assert truth.image is not None
    whole = truth.image.read_bytes()
    truth.image.write_bytes(whole[: len(whole) // 3])
    error = refusal(truth.folder)
    assert (error.rule, error.file) == ("image_readable", str(truth.image))


def test_a_named_copy_is_a_reduced_image(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s")
    slide = read(truth.folder, image=str(truth.folder / "spatial/tissue_hires_image.png"))
    assert slide.flags == ("image_reduced",)
    check_against(slide, truth, 400 / max(truth.size_px))


def test_a_named_image_that_is_another_one(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", image="hires")
    other = tmp_path / "other.png"
    Image.new("RGB", (truth.size_px[0] // 2, truth.size_px[1]), "white").save(other)
    error = refusal(truth.folder, image=str(other))
    assert (error.rule, error.limit, error.file) == ("image_fits", 0.01, str(other))
    assert error.figure == pytest.approx(0.5, abs=0.01)
    error = refusal(truth.folder, image=str(tmp_path / "gone.tif"))
    assert (error.rule, error.file) == ("missing_file", str(tmp_path / "gone.tif"))


def test_spots_outside_a_named_image_of_unknown_size(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", image=None)
    half = tmp_path / "half.png"
    Image.new("RGB", (truth.size_px[0] // 2, truth.size_px[1]), "white").save(half)
    slide = read(truth.folder, image=str(half))
    size = Image.open(half).size
    with pytest.raises(SourceError) as caught:
        judge_spots(Slide(**{**vars(slide), "image_size_px": size}), QualitySettings(min_genes=50))
    assert (caught.value.rule, caught.value.limit) == ("image_covers_spots", 0.9)
    assert 0.3 < (caught.value.figure or 0) < 0.7


def test_an_image_beside_outs(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "P7/outs", image="hires")
    full = tmp_path / "P7/slide.tif"
    Image.new("RGB", truth.size_px).save(full)
    assert read(tmp_path / "P7/outs").image == str(full)


def test_a_sample_as_it_is_published(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", prefix="V1_Human_Lymph_Node_", image_name="image.tif", version=1)
    # Both archives unpacked, of which one names the sample and one does not; and the raw matrix.
    write_mtx(truth.folder / "filtered_feature_bc_matrix", truth.barcodes, truth.counts, truth.features)
    raw = csr_array(np.zeros((1, len(truth.features))))
    write_h5(truth.folder / "V1_Human_Lymph_Node_raw_feature_bc_matrix.h5", ["A-1"], raw, truth.features, {})
    slide = read(truth.folder)
    check_against(slide, truth)
    assert slide.matrix_file == str(truth.folder / "V1_Human_Lymph_Node_filtered_feature_bc_matrix.h5")
    assert slide.image == str(truth.folder / "V1_Human_Lymph_Node_image.tif")


def test_several_samples_in_one_folder(tmp_path: Path) -> None:
    truths = {
        name: write_space_ranger(tmp_path / "s", prefix=f"{name}_", spatial=f"{name}_spatial", seed=seed)
        for seed, name in enumerate(("S1", "S2"))
    }
    sources = reader("space-ranger").find(Listing(Location.parse(tmp_path / "s")))
    assert [source.section for source in sources] == ["S1", "S2"]
    for source in sources:
        truth = truths[source.section or ""]
        slide = reader("space-ranger").read(source, {})
        check_against(slide, truth)
        assert slide.image == str(truth.image)
        assert source.owns == (str(truth.folder / f"{source.section}_spatial"),)


def test_a_flat_folder_of_packed_files(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", prefix="GSM1_", image="hires", version=1)
    for file in (truth.folder / "spatial").iterdir():
        name = truth.folder / f"GSM1_{file.name}"
        if file.suffix == ".png":
            shutil.move(file, name)
        else:
            name.with_name(name.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
    shutil.rmtree(truth.folder / "spatial")
    check_against(read(truth.folder), truth, 400 / max(truth.size_px))


def test_a_raw_matrix_alone(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s")
    (truth.folder / "filtered_feature_bc_matrix.h5").unlink()
    off = [barcode for barcode, place in truth.where.items() if not place[0]]
    counts = np.vstack([truth.counts, np.ones((len(off), truth.counts.shape[1]), dtype=int)])
    raw = truth.folder / "raw_feature_bc_matrix.h5"
    write_h5(raw, [*truth.barcodes, *off], csr_array(counts), truth.features, {})
    slide = read(truth.folder)
    check_against(slide, truth)
    assert {spot.barcode: spot.rule for spot in slide.refused} == dict.fromkeys(off, "spot_selected")
    assert slide.refused[0].x_px == pytest.approx(truth.where[slide.refused[0].barcode][3])


def test_barcodes_without_a_position(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", version=2)
    lost = truth.barcodes[:3]
    kept = {barcode: place for barcode, place in truth.where.items() if barcode not in lost}
    write_positions(truth.folder / "spatial", kept, version=2)
    slide = read(truth.folder)
    assert {spot.barcode: spot.rule for spot in slide.refused} == dict.fromkeys(lost, "spot_position")
    assert len(slide) == len(truth.barcodes) - 3


def test_positions_of_another_section(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s")
    other = {f"{barcode[:-1]}9": place for barcode, place in truth.where.items()}
    write_positions(truth.folder / "spatial", other, version=2)
    slide = read(truth.folder)
    check_section(slide)
    with pytest.raises(SourceError) as caught:
        judge_spots(slide, QualitySettings())
    assert (caught.value.rule, caught.value.figure, caught.value.limit) == ("barcodes_match", 0.0, 0.5)
    assert caught.value.file == str(truth.folder / "spatial/tissue_positions.csv")


def test_what_is_no_gene_is_left_out_and_told(tmp_path: Path) -> None:
    genes = gene_features()
    antibodies = [(f"CD{i}", f"CD{i}.1", "Antibody Capture", "") for i in range(4)]
    features = [*genes[:100], *antibodies, ("EGFP", "EGFP", "Gene Expression", "GRCh38"), *genes[100:]]
    for matrix in ("h5", "mtx"):
        truth = write_space_ranger(tmp_path / matrix, matrix=matrix, features=features)
        slide = read(truth.folder)
        columns = [i for i, feature in enumerate(features) if feature[2] == "Gene Expression"]
        row_of = {barcode: i for i, barcode in enumerate(truth.barcodes)}
        order = [row_of[barcode] for barcode in slide.barcodes]
        np.testing.assert_array_equal(slide.counts.toarray(), truth.counts[np.ix_(order, columns)])
        assert slide.flags == ("left out: Antibody Capture",)
        assert slide.symbols[100] == "EGFP"
        assert slide.ensembl_ids is not None
        assert slide.ensembl_ids[99:102] == [genes[99][0], None, genes[100][0]]


def test_a_matrix_of_antibodies_alone(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", features=[("CD3", "CD3", "Antibody Capture", "")])
    error = refusal(truth.folder)
    assert (error.rule, error.figure) == ("genes_named", 0.0)
    assert "Antibody Capture (1)" in str(error)


def test_species(tmp_path: Path) -> None:
    mouse = write_space_ranger(tmp_path / "mouse", features=gene_features(260, "mouse"))
    assert read(mouse.folder).metadata.species == "mouse"
    # A transgene of another species is no second species, and a gene without an Ensembl id has its genome's.
    mixed = [*gene_features(250, "mouse"), ("ENSG00000130234", "ACE2", "Gene Expression", "mm10")]
    assert read(write_space_ranger(tmp_path / "ace2", features=mixed).folder).metadata.species == "mouse"
    plain = [(f"G{i}", f"G{i}", "Gene Expression", "GRCh38-2020-A") for i in range(30)]
    assert read(write_space_ranger(tmp_path / "plain", features=plain).folder).metadata.species == "human"
    nobody = [(f"G{i}", f"G{i}", "Gene Expression", "ours") for i in range(30)]
    assert read(write_space_ranger(tmp_path / "nobody", features=nobody).folder).metadata.species is None
    from_mtx = write_space_ranger(tmp_path / "mtx", matrix="mtx", features=gene_features(260, "mouse"))
    assert read(from_mtx.folder).metadata.species == "mouse"


def test_two_species(tmp_path: Path) -> None:
    both = [
        (f"{genome}_{gene}", f"{genome}___{name}", kind, genome)
        for species, genome in (("human", "GRCh38"), ("mouse", "mm10"))
        for gene, name, kind, _ in gene_features(40, species)
    ]
    truth = write_space_ranger(tmp_path / "s", features=both)
    error = refusal(truth.folder)
    assert (error.rule, error.figure, error.limit) == ("one_species", 2.0, 1.0)
    assert "species = human or mouse" in str(error)
    slide = read(truth.folder, species="Mus musculus")
    assert slide.symbols == [name for _, name, _, _ in gene_features(40, "mouse")]
    assert slide.ensembl_ids == [gene for gene, _, _, _ in gene_features(40, "mouse")]
    assert slide.counts.sum() == truth.counts[:, 40:].sum()
    assert slide.flags == ("left out: other species",)


def test_duplicate_symbols_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    features = gene_features()
    features[1] = (features[1][0], features[0][1], *features[1][2:])
    slide = read(write_space_ranger(tmp_path / "s", features=features).folder)
    assert slide.symbols[0] == slide.symbols[1]
    assert slide.ensembl_ids is not None
    assert slide.ensembl_ids[0] != slide.ensembl_ids[1]


@pytest.mark.parametrize("genes_tsv", [True, False])
def test_plain_matrix_market_files(tmp_path: Path, genes_tsv: bool) -> None:
    truth = write_space_ranger(tmp_path / "s")
    (truth.folder / "filtered_feature_bc_matrix.h5").unlink()
    folder = truth.folder / "filtered_feature_bc_matrix"
    write_mtx(folder, truth.barcodes, truth.counts, truth.features, packed=False, genes_tsv=genes_tsv)
    check_against(read(truth.folder), truth)


def test_a_truncated_matrix(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "h5")
    file = truth.folder / "filtered_feature_bc_matrix.h5"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    error = refusal(truth.folder)
    assert (error.rule, error.file) == ("file_complete", str(file))
    assert (error.figure, error.limit) == (len(whole) // 2, len(whole))
    file.write_bytes(b"no matrix")
    assert refusal(truth.folder).rule == "file_complete"
    file.write_bytes(b"")
    assert refusal(truth.folder).rule == "file_complete"


def test_a_damaged_block_of_a_matrix(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s")
    file = truth.folder / "filtered_feature_bc_matrix.h5"
    with h5py.File(file) as stored:
        block = stored["matrix/data"].id.get_chunk_info(0)
    data = bytearray(file.read_bytes())
    data[block.byte_offset + 10 : block.byte_offset + 200] = bytes(190)
    file.write_bytes(data)
    assert refusal(truth.folder).rule == "file_complete"


@pytest.mark.parametrize(
    ("dataset", "change", "rule"),
    [
        ("barcodes", lambda values: values[:-2], "file_complete"),
        ("data", lambda values: values[:-5], "file_complete"),
        ("indices", lambda values: values + 10_000, "file_complete"),
        ("indptr", lambda values: values[::-1], "file_complete"),
        ("barcodes", lambda values: np.array([values[0], *values[:-1]]), "duplicate_barcodes"),
    ],
)
def test_a_matrix_whose_parts_do_not_fit(tmp_path: Path, dataset: str, change: Any, rule: str) -> None:
    truth = write_space_ranger(tmp_path / "s")
    with h5py.File(truth.folder / "filtered_feature_bc_matrix.h5", "r+") as stored:
        values = change(stored[f"matrix/{dataset}"][:])
        del stored[f"matrix/{dataset}"]
        stored[f"matrix/{dataset}"] = values
    assert refusal(truth.folder).rule == rule


def test_another_hdf5_file(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s")
    file = truth.folder / "filtered_feature_bc_matrix.h5"
    with h5py.File(file, "w") as stored:
        stored["X"] = [1, 2]
    error = refusal(truth.folder)
    assert (error.rule, error.file) == ("counts_valid", str(file))


def test_a_truncated_matrix_market_folder(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", matrix="mtx")
    folder = truth.folder / "filtered_feature_bc_matrix"
    for name in ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        error = refusal(truth.folder)
        assert (error.rule, error.file) == ("file_complete", str(folder / name))
        text = gzip.decompress(whole)
        (folder / name).write_bytes(gzip.compress(b"\n".join(text.split(b"\n")[:-5]) + b"\n"))
        assert refusal(truth.folder).rule == "file_complete"
        (folder / name).unlink()
        error = refusal(truth.folder)
        assert (error.rule, error.file) == ("missing_file", str(folder / name))
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix.h5"),
        ("spatial/tissue_positions.csv", "spatial/tissue_positions.csv"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, gone: str, named: str) -> None:
    truth = write_space_ranger(tmp_path / "s")
    (truth.folder / gone).unlink()
    error = refusal(truth.folder)
    assert (error.rule, error.file) == ("missing_file", str(truth.folder / named))
    assert named in str(error)


def test_missing_scale_factors(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s")
    (truth.folder / "spatial/scalefactors_json.json").unlink()
    slide = read(truth.folder)
    assert slide.image == str(truth.image)
    assert [e.origin for e in slide.scales] == ["pitch"]
    (truth.image or Path()).unlink()
    error = refusal(truth.folder)
    assert (error.rule, error.file) == ("missing_file", str(truth.folder / "spatial/scalefactors_json.json"))


@pytest.mark.parametrize(("text", "rule"), [("{", "file_complete"), ('{"tissue_hires_scalef": 0}', "scale_known")])
def test_scale_factors_that_are_none(tmp_path: Path, text: str, rule: str) -> None:
    truth = write_space_ranger(tmp_path / "s")
    (truth.folder / "spatial/scalefactors_json.json").write_text(text)
    assert refusal(truth.folder).rule == rule


def test_positions_that_are_wrong(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s")
    file = truth.folder / "spatial/tissue_positions.csv"
    text = file.read_text()
    lines = text.split("\n")
    for changed, rule in (
        (text[: len(text) // 2].rsplit(",", 3)[0], "file_complete"),
        ("\n".join([*lines[:3], lines[3].rsplit(",", 1)[0] + ",left", *lines[4:]]), "positions_valid"),
        ("\n".join([*lines[:3], lines[3].rsplit(",", 1)[0] + ",nan", *lines[4:]]), "positions_valid"),
        ("\n".join([lines[0].replace("array_row", "row"), *lines[1:]]), "positions_valid"),
        ("\n".join([*lines[:4], lines[3], *lines[4:]]), "duplicate_barcodes"),
        (lines[0] + "\n", "empty_section"),
        ("", "empty_section"),
    ):
        file.write_text(changed)
        error = refusal(truth.folder)
        assert (error.rule, error.file) == (rule, str(file)), changed[:80]


def test_pixels_that_do_not_follow_the_array(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", rows=30, columns=40)
    pixels = [place[3:] for place in truth.where.values()]
    np.random.default_rng(0).shuffle(pixels)
    shuffled = {b: (*place[:3], *xy) for (b, place), xy in zip(truth.where.items(), pixels, strict=True)}
    write_positions(truth.folder / "spatial", shuffled, version=2)
    error = refusal(truth.folder)
    assert (error.rule, error.limit) == ("positions_valid", 25.0)
    assert (error.figure or 0) > 25
    line = {b: place for b, place in truth.where.items() if place[1] == 3}
    write_positions(truth.folder / "spatial", line, version=2)
    assert refusal(truth.folder).rule == "positions_spread"


def test_a_scale_by_pitch_and_by_fiducials_that_disagree(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s")
    file = truth.folder / "spatial/scalefactors_json.json"
    factors = json.loads(file.read_text())
    file.write_text(json.dumps(factors | {"fiducial_diameter_fullres": 0.9 * factors["fiducial_diameter_fullres"]}))
    slide = read(truth.folder)
    with pytest.raises(SourceError) as caught:
        settle(slide, None, ScaleSettings())
    assert caught.value.rule == "scale_agrees"
    trusted = settle(read(truth.folder, scale_from="fiducial"), None, ScaleSettings())
    assert trusted.metadata.um_per_px == pytest.approx(2 / 0.9, rel=1e-3)


def test_a_mirrored_and_turned_array_has_the_same_scale(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", turn=1.6)
    mirrored = {b: (*place[:3], truth.size_px[0] - place[3], place[4]) for b, place in truth.where.items()}
    write_positions(truth.folder / "spatial", mirrored, version=2)
    assert read(truth.folder).scales[0].um_per_px == pytest.approx(2.0, rel=1e-4)


def test_metadata_win(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s")
    (truth.folder / "section.json").write_text(json.dumps({"technology": "Visium FFPE", "patient": "P1"}))
    slide = read(truth.folder, patient="P2", species="human")
    assert (slide.metadata.technology, slide.metadata.patient) == ("Visium FFPE", "P2")


def test_the_digest_covers_every_file_that_is_read(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s", matrix="mtx")
    before = digest(found(truth.folder), {})
    for name in (
        "filtered_feature_bc_matrix/matrix.mtx.gz",
        "spatial/tissue_positions.csv",
        "spatial/scalefactors_json.json",
        "tissue_image.tif",
    ):
        whole = (truth.folder / name).read_bytes()
        (truth.folder / name).write_bytes(whole + b" ")
        assert digest(found(truth.folder), {}) != before
        (truth.folder / name).write_bytes(whole)
    assert digest(found(truth.folder), {}) == before


def test_a_run_of_barcodes_is_read_alone(tmp_path: Path) -> None:
    truth = write_space_ranger(tmp_path / "s")
    file = str(truth.folder / "filtered_feature_bc_matrix.h5")
    whole = read_matrix(file)
    with open_h5(file) as stored:
        runs = list(stored.blocks(3_000))
        assert len(runs) > 3
        assert [start for start, _ in runs] == [0, *(stop for _, stop in runs[:-1])]
        joined = np.vstack([stored.rows(start, stop).toarray() for start, stop in runs])
    np.testing.assert_array_equal(joined, whole.counts_NG.toarray())
    assert whole.attributes["software_version"] == "spaceranger-2.0.0"


def test_other_folders_are_not_ours(tmp_path: Path) -> None:
    for name in ("matrix.mtx", "image.jpg", "cells.parquet", "cell_feature_matrix.h5"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "spatial").mkdir()
    assert readers()["space-ranger"].find(Listing(Location.parse(tmp_path))) == []


def test_sections_are_found_named_and_judged(tmp_path: Path) -> None:
    write_space_ranger(tmp_path / "P1/outs")
    for name in ("A", "B"):
        write_space_ranger(
            tmp_path / "flat", prefix=f"{name}_", spatial=f"{name}_spatial", image="hires", seed=ord(name)
        )
    write_visium_hd(tmp_path / "HD/outs", sizes=(8,), bins=(400, 400), image=None)
    settings = ingest_settings(load_settings())
    looks = {c.section: (c.source, look(c, None, settings)) for c in find_sections([str(tmp_path)], "c")}
    assert {name: source.reader for name, (source, _) in looks.items() if source} == {
        "P1": "space-ranger",
        "flat/A": "space-ranger",
        "flat/B": "space-ranger",
        "HD": "visium-hd",
    }
    flags = {name: told.record["flags"] for name, (_, told) in looks.items()}
    assert flags["P1"] == ["low_resolution"]
    assert flags["flat/A"] == ["image_reduced", "low_resolution"]
    assert {"image: none", "pseudo_spots"} < set(flags["HD"])
    assert all(told.n_kept >= 50 for _, told in looks.values())
    assert all(told.record["scale_from"] == "pitch" for _, told in looks.values())


REAL = {
    # folder: spots, um/px by the pitch on the lowres image, species, technology
    "dlpfc/151673": (2929, 0.7245 / 0.045004502, "human", "Visium"),
    "visium_mouse_embryo": (2898, 4.667 / 0.2, "mouse", "Visium CytAssist"),
}


@pytest.mark.parametrize("folder", REAL)
def test_real_sections(real_sections: Path, folder: str) -> None:
    spots, um_per_px, species, technology = REAL[folder]
    slide = read(real_sections / folder)
    check_section(slide)
    assert (len(slide), slide.refused, slide.flags) == (spots, (), ("image_reduced",))
    assert (slide.metadata.species, slide.metadata.technology) == (species, technology)
    assert slide.image == str(real_sections / folder / "spatial/tissue_lowres_image.png")
    assert (slide.xy_px > 0).all()
    assert (slide.xy_px < 600).all()
    settled = settle(slide, None, ScaleSettings())
    assert settled.metadata.um_per_px == pytest.approx(um_per_px, rel=0.002)
    assert settled.metadata.scale_from == "pitch"
    by = {e.origin: e.um_per_px for e in settled.scales}
    assert by["fiducial"] == pytest.approx(by["pitch"], rel=0.005)
