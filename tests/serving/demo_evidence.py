"""Evidence drawn by a program, for tests of the report: smooth fields on a grid of spots, with known correlations."""

from __future__ import annotations

import io

import numpy as np

from histolake.serving.demo.evidence import ClassMap, Evidence, Figures, GeneMap, Hit, Query, Recipe, Section

GENES = ("ERBB2", "KRT19", "COL1A1", "IGKC", "SPARC", "CD74", "GAPDH", "ACTB")


def picture(seed: int, width: int, height: int) -> bytes:
    """A JPEG of pink and violet blobs."""
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    draw = np.random.default_rng(seed)
    blobs = gaussian_filter(draw.standard_normal((height, width)), max(width, height) / 25)
    grain = gaussian_filter(draw.standard_normal((height, width)), 1.2)
    share = np.clip(0.5 + 6 * blobs / np.abs(blobs).max() * 0.12 + 0.25 * grain, 0, 1)[..., None]
    pixels = share * np.array([120, 84, 160]) + (1 - share) * np.array([240, 196, 214])
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def grid(columns: int, rows: int, pitch_px: float) -> np.ndarray:
    """Spot centres of a disc-shaped piece of tissue."""
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    inside = ((x - columns / 2) / columns) ** 2 + ((y - rows / 2) / rows) ** 2 < 0.22
    return (np.c_[x[inside], y[inside]] + 1.5) * pitch_px


def field(xy_S2: np.ndarray, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    size = np.ptp(xy_S2, axis=0).max()
    waves = draw.normal(size=(4, 2)) * 5 / size
    return np.sin(xy_S2 @ waves.T + draw.uniform(0, 6, 4)).sum(axis=1) + 4


def section(name: str, patient: str, side: str, seed: int, um_per_px: float = 0.69) -> Section:
    xy_S2 = grid(17, 15, 200 / um_per_px)
    lost = np.random.default_rng(seed).choice(len(xy_S2), 4, replace=False)
    kept = np.delete(xy_S2, lost, axis=0)
    size = ((np.ptp(xy_S2, axis=0) + 500 / um_per_px) + xy_S2.min(axis=0)).astype(int)
    return Section(
        slide_id=f"cohort/{name}", patient=patient, side=side, published=True, technology="Spatial Transcriptomics",
        um_per_px=um_per_px, flags=("low_resolution",) if um_per_px > 2 else (), n_spots=len(xy_S2), n_pairs=len(kept),
        refused={"min_genes": 3, "outside_image": 1}, reason=None, picture=picture(seed, 700, 700 * size[1] // size[0]),
        width_px=int(size[0]), height_px=int(size[1]), spot_px=100 / um_per_px, kept_S2=kept, refused_S2=xy_S2[lost],
    )  # fmt: skip


def refused_section() -> Section:
    nothing = np.zeros((0, 2))
    return Section(
        slide_id="cohort/B9", patient=None, side="left_out", published=False, technology=None, um_per_px=None, flags=(),
        n_spots=0, n_pairs=0, refused={}, reason="counts.tsv.gz ends in the middle of a row: 1,204 of 15,700 columns.",
        picture=None, width_px=0, height_px=0, spot_px=0.0, kept_S2=nothing, refused_S2=nothing,
    )  # fmt: skip


def figures(side: str, *, lift: float, same_patient: bool, seed: int) -> Figures:
    draw = np.random.default_rng(seed)
    pcc_G = np.clip(draw.normal(0.08 + lift, 0.12, 200), -0.6, 0.9)
    ridge_G = np.clip(draw.normal(0.1 + lift, 0.12, 200), -0.6, 0.9)
    return Figures(
        side=side, slide_ids=("cohort/C5",) if side == "validation" else ("cohort/A1",), same_patient=same_patient,
        n_pairs=183 if side == "validation" else 341, recall_at_5pct=0.07 + lift, recall_at_10pct=0.14 + lift,
        pcc_mean=float(pcc_G.mean()), pcc_mean_predictor=0.0, pcc_ridge=float(ridge_G.mean()), chance_at_5pct=0.05,
        chance_at_10pct=0.1, cca_at_5pct=0.09 + lift, cca_at_10pct=0.18 + lift,
        genes=tuple(f"G{i}" for i in range(200)), pcc_G=pcc_G, pcc_ridge_G=ridge_G, pcc_mean_predictor_G=np.zeros(200),
    )  # fmt: skip


def recipe(name: str, version: str, *, served: bool, seed: int) -> Recipe:
    draw = np.random.default_rng(seed)
    steps = np.arange(1, 181)
    loss = 3.2 * np.exp(-steps / 60) + 1.1 + 0.15 * draw.standard_normal(180)
    return Recipe(
        name=name, about="CLIP on a pretrained EfficientNet-Lite0" if served else "CoCa from scratch",
        model_name="omiclip", model_version=version, model_uri=f"models:/omiclip/{version}", served=served,
        lake_version=5, train_steps=180,
        loss=tuple((int(s), float(v)) for s, v in zip(steps, loss, strict=True)), loss_first=float(loss[:18].mean()),
        loss_last=float(loss[-18:].mean()), genes_surviving_tokenizer=21.4,
        figures={
            "test": figures("test", lift=0.03 * served, same_patient=False, seed=seed),
            "validation": figures("validation", lift=0.1 + 0.06 * served, same_patient=True, seed=seed + 1),
        },
    )  # fmt: skip


def gene_map(slide_id: str, gene: str, why: str, seed: int) -> GeneMap:
    xy_S2 = grid(17, 15, 290)
    measured = field(xy_S2, seed) + 0.4 * np.random.default_rng(seed).standard_normal(len(xy_S2))
    predicted = 0.5 * field(xy_S2, seed) + 0.3 * field(xy_S2, seed + 50)
    pcc = float(np.corrcoef(measured, predicted)[0, 1])
    return GeneMap(
        slide_id=slide_id,
        gene=gene,
        why=why,
        pcc=pcc,
        spot_px=145.0,
        xy_S2=xy_S2,
        measured_S=measured,
        predicted_S=predicted,
    )


def class_map(slide_id: str, name: str, markers: tuple[str, ...], seed: int) -> ClassMap:
    xy_S2 = grid(17, 15, 290)
    measured, score = field(xy_S2, seed), 0.02 * field(xy_S2, seed) + 0.01 * field(xy_S2, seed + 9)
    return ClassMap(
        slide_id=slide_id, name=name, markers=markers, pcc=float(np.corrcoef(measured, score)[0, 1]), share=0.25,
        spot_px=145.0, xy_S2=xy_S2, score_S=score, measured_S=measured,
    )  # fmt: skip


def query(seed: int) -> Query:
    draw = np.random.default_rng(seed)
    hits = tuple(
        Hit(slide_id="cohort/C3", barcode=f"{seed}x{i}", score=0.8 - 0.05 * i,
            picture=picture(100 * seed + i, 145, 145), sentence=" ".join(draw.permutation(GENES)[:6]))
        for i in range(5)
    )  # fmt: skip
    return Query(
        slide_id="cohort/A1", barcode=f"{seed}x9", picture=picture(seed, 32, 32), sentence=" ".join(GENES), hits=hits
    )


def make(*, simulated: bool = False) -> Evidence:
    """A whole run's evidence."""
    sections = [section(f"C{i}", "C", "validation" if i == 5 else "train", i) for i in range(2, 6)]
    sections += [section("A1", "A", "test", 9, um_per_px=3.2), refused_section()]
    maps = [
        gene_map(f"cohort/{name}", gene, why, i + 10 * j)
        for j, name in enumerate(("C5", "A1"))
        for i, (gene, why) in enumerate(
            [(g, "best predicted") for g in GENES[:4]] + [(g, "marker") for g in GENES[4:8]]
        )
    ]
    classes = [
        class_map(f"cohort/{name}", cls, ("ERBB2", "KRT8", "KRT19"), i)
        for name in ("C5", "A1")
        for i, cls in enumerate(("tumour epithelium", "plasma and B cells", "stroma", "adipose"))
    ]
    return Evidence(
        simulated=simulated, source="Five legacy Spatial Transcriptomics sections were named.", lake_version=5,
        software="0.1.0", shards=4, sections=tuple(sections),
        recipes=(recipe("coca-tiny", "1", served=False, seed=1), recipe("clip-lite0", "2", served=True, seed=2)),
        chosen_because="clip-lite0 is served: its Recall@10% on validation is the higher one (30% against 24%).",
        maps=tuple(maps), queries=tuple(query(i) for i in range(4)), classes=tuple(classes), served_requests=37,
        domain_agreement={"cohort/A1": 0.61} if simulated else {},
        seconds={"sample": 1.2, "ingest": 30.5, "train": 301.0},
        commands=("histolake sample --to demo-output/sample", "histolake ingest demo-output/sample --cohort her2st"),
    )  # fmt: skip
