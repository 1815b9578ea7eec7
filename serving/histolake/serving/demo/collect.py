"""From the lake, the runs, the evaluation and the served answers to the report's evidence.

Nothing is computed here that a served task or the evaluation computes: this only chooses what to show.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from histolake.platform.lake import Snapshot
from histolake.platform.splits import Split, unit_of
from histolake.serving.demo.asking import Answers, HeldOut
from histolake.serving.demo.evidence import ClassMap, Figures, GeneMap, Hit, Query, Section

__all__ = ["class_maps", "figures_of", "gene_maps", "pictures_of", "queries_of", "sections_of"]

THUMBNAIL_PX = 1800
MAPS = 4  # genes a row


# -- sections ------------------------------------------------------------------------------------------------------


def sections_of(snapshot: Snapshot, cohort: str, sides: Mapping[str, str]) -> tuple[Section, ...]:
    """The cohort's sections, those of training first and refused ones last, each with its picture and its spots."""
    rows = [row for row in snapshot.slides(include_refused=True).to_pylist() if row["cohort"] == cohort]
    refusals: dict[str, list[dict[str, Any]]] = {}
    for rejection in snapshot.rejections().to_pylist():
        refusals.setdefault(rejection["ingest_id"], []).append(rejection)
    order = ("train", "validation", "test")
    rows.sort(
        key=lambda row: (
            row["status"] != "published",
            order.index(sides[row["slide_id"]]) if row["slide_id"] in sides else len(order),
            row["slide_id"],
        )
    )
    return tuple(_section(snapshot, row, refusals.get(row["ingest_id"], []), sides) for row in rows)


def _section(
    snapshot: Snapshot, row: dict[str, Any], rejections: Sequence[dict[str, Any]], sides: Mapping[str, str]
) -> Section:
    published = row["status"] == "published"
    whole = [r for r in rejections if r["barcode"] is None]
    spots = [r for r in rejections if r["barcode"] is not None]
    placed = [(r["x_px"], r["y_px"]) for r in spots if r["x_px"] is not None and r["y_px"] is not None]
    kept = _positions(snapshot, row["slide_id"]) if published else np.zeros((0, 2))
    picture = _thumbnail(row["image"]) if published and row["image"] else None
    return Section(
        slide_id=row["slide_id"],
        patient=row["patient"],
        side=sides.get(row["slide_id"], "left_out"),
        published=published,
        technology=row["technology"],
        um_per_px=row["um_per_px"],
        flags=tuple(row["flags"] or ()),
        n_spots=int(row["n_spots"] or 0),
        n_pairs=int(row["n_pairs"] or 0),
        refused=dict(Tally(r["rule"] for r in spots).most_common()),
        reason=whole[0]["reason"] if whole else None,
        picture=picture,
        width_px=int(row["image_width_px"] or 0) if published else 0,
        height_px=int(row["image_height_px"] or 0) if published else 0,
        spot_px=_spot_px(row),
        kept_S2=kept,
        refused_S2=np.array(placed, dtype=float).reshape(-1, 2),
    )


def _spot_px(row: Mapping[str, Any]) -> float:
    return float(row["spot_diameter_um"] or 0) / float(row["um_per_px"] or 1) if row["um_per_px"] else 0.0


def _positions(snapshot: Snapshot, slide_id: str) -> np.ndarray:
    batches = snapshot.pairs(["x_px", "y_px"], slide_ids=[slide_id])
    found = [np.stack([batch["x_px"].to_numpy(), batch["y_px"].to_numpy()], axis=1) for batch in batches]
    return np.concatenate(found).astype(float) if found else np.zeros((0, 2))


def _thumbnail(uri: str) -> bytes | None:
    """The source image, reduced; None where it is no longer there (the lake keeps patches, not images)."""
    import pyvips

    from histolake.platform.storage import Location

    location = Location.parse(uri)
    if not location.is_file():
        return None
    data: bytes = pyvips.Image.thumbnail(str(location.local_path()), THUMBNAIL_PX).write_to_buffer(".jpg", Q=85)
    return data


# -- figures -------------------------------------------------------------------------------------------------------


def figures_of(
    evaluation: Mapping[str, Any] | None, split: Split, slides: Sequence[Mapping[str, Any]]
) -> Figures | None:
    """One side's figures from a document of `histolake evaluate --out`; None where the side is empty."""
    if evaluation is None:
        return None
    rows = evaluation["rows"]
    total = next(row for row in rows if row["slide_id"] == "all")
    slide_ids = tuple(row["slide_id"] for row in rows if row["slide_id"] != "all")
    units = {row["slide_id"]: unit_of(row) for row in slides}
    trained = {units[slide_id] for slide_id in split.lists["train"]}
    by_gene = _by_gene(evaluation["genes"])
    return Figures(
        side=total["side"],
        slide_ids=slide_ids,
        same_patient=any(units[slide_id] in trained for slide_id in slide_ids),
        n_pairs=int(total["n_spots"]),
        recall_at_5pct=total["recall_at_5pct"],
        recall_at_10pct=total["recall_at_10pct"],
        pcc_mean=total["pcc_mean"],
        pcc_mean_predictor=total["pcc_mean_mean_predictor"],
        pcc_ridge=total["pcc_mean_ridge"],
        chance_at_5pct=total["recall_at_5pct_chance"],
        chance_at_10pct=total["recall_at_10pct_chance"],
        cca_at_5pct=total["recall_at_5pct_cca"],
        cca_at_10pct=total["recall_at_10pct_cca"],
        genes=tuple(by_gene),
        pcc_G=_means(by_gene, "pcc"),
        pcc_ridge_G=_means(by_gene, "pcc_ridge"),
        pcc_mean_predictor_G=_means(by_gene, "pcc_mean_predictor"),
    )


def _by_gene(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["gene"], []).append(row)
    return found


def _means(by_gene: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> np.ndarray:
    """Mean over sections for each gene; NaN where no section has the figure."""
    values = [[row[key] for row in rows if row[key] is not None] for rows in by_gene.values()]
    return np.array([np.mean(had) if had else np.nan for had in values])


# -- maps ----------------------------------------------------------------------------------------------------------


def gene_maps(
    held_out: HeldOut, answers: Answers, ids: Mapping[str, int], markers: Sequence[str], spot_px: float
) -> list[GeneMap]:
    """The best predicted genes of a section and the markers that the model predicts."""
    measured_SG = held_out.measured([ids[gene] for gene in answers.genes])
    pcc = {g: _correlation(answers.predicted_SG[:, i], measured_SG[:, i]) for i, g in enumerate(answers.genes)}
    known = {gene: value for gene, value in pcc.items() if value is not None}
    named = [gene for gene in markers if gene in known][:MAPS]
    best = [gene for gene in sorted(known, key=lambda gene: -known[gene]) if gene not in named][:MAPS]
    place = {gene: i for i, gene in enumerate(answers.genes)}
    return [
        GeneMap(
            slide_id=held_out.slide_id,
            gene=gene,
            why=why,
            pcc=known[gene],
            spot_px=spot_px,
            xy_S2=held_out.xy_S2,
            measured_S=measured_SG[:, place[gene]],
            predicted_S=answers.predicted_SG[:, place[gene]],
        )
        for genes, why in ((best, "best predicted"), (named, "markers"))
        for gene in genes
    ]


def class_maps(
    held_out: HeldOut, answers: Answers, ids: Mapping[str, int], classes: Mapping[str, str], spot_px: float
) -> list[ClassMap]:
    """Each class's served score beside the mean of its markers as measured."""
    found = []
    for column, name in enumerate(answers.classes):
        markers = tuple(symbol for symbol in classes[name].split() if symbol in ids)
        measured_S = _marker_mean(held_out, ids, markers)
        score_S = answers.scores_SC[:, column]
        found.append(
            ClassMap(
                slide_id=held_out.slide_id,
                name=name,
                markers=markers,
                pcc=_correlation(score_S, measured_S),
                share=answers.labels.count(name) / max(len(answers.labels), 1),
                spot_px=spot_px,
                xy_S2=held_out.xy_S2,
                score_S=score_S,
                measured_S=measured_S,
            )
        )
    return found


def _marker_mean(held_out: HeldOut, ids: Mapping[str, int], markers: Sequence[str]) -> np.ndarray:
    if not markers:
        return np.zeros(len(held_out.images))
    mean_S: np.ndarray = held_out.measured([ids[symbol] for symbol in markers]).mean(axis=1)
    return mean_S


def _correlation(left_S: np.ndarray, right_S: np.ndarray) -> float | None:
    if len(left_S) < 3 or np.ptp(left_S) == 0 or np.ptp(right_S) == 0:
        return None
    return float(np.corrcoef(left_S.astype(float), right_S.astype(float))[0, 1])


# -- retrieval -----------------------------------------------------------------------------------------------------


def choose_queries(held_out: HeldOut, ids: Mapping[str, int], classes: Mapping[str, str], count: int) -> list[int]:
    """One spot a class: that where its markers stand out most against the section's other spots, in standard scores.

    Chosen by the measured profile, which the server does not see: the questions are typical, not the easy ones.
    """
    scores = []
    for sentence in classes.values():
        mean_S = _marker_mean(held_out, ids, [symbol for symbol in sentence.split() if symbol in ids])
        scores.append((mean_S - mean_S.mean()) / (mean_S.std() or 1.0))
    chosen: list[int] = []
    for score_S in scores[:count]:
        order = [int(i) for i in np.argsort(-score_S, kind="stable") if int(i) not in chosen]
        chosen += order[:1]
    return chosen


def queries_of(
    held_out: HeldOut, chosen: Sequence[int], hits: Sequence[Sequence[Mapping[str, Any]]], pictures: Mapping[str, bytes]
) -> list[Query]:
    """The chosen patches and what was retrieved for each."""
    return [
        Query(
            slide_id=held_out.slide_id,
            barcode=held_out.barcodes[index],
            picture=held_out.images[index],
            sentence=held_out.sentences[index],
            hits=tuple(
                Hit(
                    slide_id=hit["slide_id"],
                    barcode=hit["barcode"],
                    score=float(hit["score"]),
                    picture=pictures.get(hit["pair_id"]),
                    sentence=hit["sentence"],
                )
                for hit in found
            ),
        )
        for index, found in zip(chosen, hits, strict=True)
    ]


def pictures_of(snapshot: Snapshot, image_column: str, hits: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, bytes]:
    """pair_id (hexadecimal) -> picture, of every hit."""
    wanted = {bytes.fromhex(hit["pair_id"]) for found in hits for hit in found}
    slide_ids = sorted({hit["slide_id"] for found in hits for hit in found})
    pictures: dict[str, bytes] = {}
    for batch in snapshot.pairs(["pair_id", image_column], slide_ids=slide_ids) if slide_ids else ():
        for pair_id, picture in zip(batch["pair_id"].to_pylist(), batch[image_column].to_pylist(), strict=True):
            if pair_id in wanted and picture is not None:
                pictures[pair_id.hex()] = picture
    return pictures


def domain_agreement(held_out: HeldOut, answers: Answers, truth: Mapping[str, str]) -> float | None:
    """Share of spots whose winning class is their true domain (barcode -> domain)."""
    known = [(label, truth[b]) for label, b in zip(answers.labels, held_out.barcodes, strict=True) if b in truth]
    return sum(label == domain for label, domain in known) / len(known) if known else None
