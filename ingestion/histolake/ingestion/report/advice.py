"""What each rule and flag means and what to do next, in words for someone who prepares a cohort."""

from __future__ import annotations

__all__ = ["flag_words", "next_step", "rule_words"]

# rule -> (what it means, what to do next)
RULES = {
    "unknown_format": (
        "no reader knows the files",
        "Check that the folder is complete and that nothing was renamed; `histolake ingest --help` lists the formats.",
    ),
    "missing_file": ("a file is missing", "Put the named file beside the others, and ingest the folder again."),
    "file_complete": ("a file is cut off", "Copy or download the file again; its size or checksum tells."),
    "unreadable": ("a file cannot be read", "Open the named file with the program it came from, or fetch it again."),
    "reader_failed": (
        "the reader has a defect",
        "Report the sentence; the files may be right. The other sections are not touched by it.",
    ),
    "image_readable": ("the image is damaged", "Fetch the image again; a copy that broke off is the usual cause."),
    "empty_section": ("the section holds no spots", "Check that the counts and the positions are of this section."),
    "counts_valid": ("the counts are no counts", "Export the matrix as measured: no negative and no missing values."),
    "positions_valid": ("positions are not numbers", "Export the positions again, one row a spot."),
    "positions_spread": ("all spots lie in one place", "Check that the two position columns are not the same one."),
    "genes_named": ("genes have no names", "Give every gene a symbol or an Ensembl id."),
    "duplicate_barcodes": ("a barcode appears twice", "Keep one row a barcode; two samples may have been joined."),
    "barcodes_match": ("counts and positions differ", "Use the positions that belong to these counts."),
    "image_covers_spots": (
        "the image does not cover the spots",
        "Give the image that the positions were measured on: not a crop, not a copy of another size.",
    ),
    "scale_agrees": (
        "micrometres per pixel disagree",
        "Find out which is right (the audit below shows all), then ingest again with scale_from in the metadata.",
    ),
    "scale_known": (
        "nothing tells the scale",
        "Write um_per_px (or pitch_um for spots on an array) into the section's metadata, and ingest again.",
    ),
    "metadata_valid": ("the metadata do not hold together", "Correct the value that the sentence names."),
    "min_spots": (
        "too few spots pass",
        "If the section is precious, lower quality.min_spots or quality.min_genes with --set; else leave it out.",
    ),
    "duplicate_slide": (
        "the same slide is in the lake already",
        "Compare the two side by side below; keep one, and correct the metadata if they are different after all.",
    ),
    "species_fits": ("the genes do not fit the species", "Correct `species` in the metadata, and ingest again."),
    "one_species": (
        "several species are mixed",
        "Name the species to keep in the metadata, and ingest again.",
    ),
    "image_fits": (
        "the image is of another size than the positions",
        "Give the image that the positions were measured on, or name it (`image`) in the metadata.",
    ),
    "format_known": ("the file is of a kind that cannot be read", "Write the file again with a current program."),
    "one_section": ("two sections lie in one folder", "Give each section a folder of its own."),
    "positions_missing": ("there are no positions", "Put the table of positions beside the counts."),
    "image_alignment": ("the image's alignment cannot be used", "Export the alignment again, or leave it out."),
    "image_chosen": ("it is not clear which image is meant", "Name the image (`image`) in the metadata."),
    "region_known": ("the region is not told", "Name the region in the metadata, as the sentence says."),
    "source_gone": ("the source is not there any more", "Put it back where it was, or ingest it from its new place."),
    "name_taken": ("two sections have one name", "Name one of them in its section.json, or use two cohorts."),
    "niche_size": ("too many spots in a niche", "Lower patches.niche_radius_um, or take a number of spots."),
    "min_genes": (
        "too few expressed genes",
        "Usually the edge of the tissue. Where it is many spots, look for a shallow library or the wrong image.",
    ),
    "min_counts": ("too few counts", "Usually the edge of the tissue or a shallow library."),
    "spot_in_image": ("the spot lies outside the image", "A few are normal at a cut edge; many mean the wrong image."),
    "spot_position": ("the spot has no position", "Give the complete table of positions if these spots matter."),
    "spot_selected": ("ruled out by the source itself", "Nothing: these spots were marked as off the tissue."),
    "spot_covered": ("the source does not cover the spot", "Nothing: nothing was measured there."),
    "duplicate_spot": ("another spot has the same profile", "Check whether two exports were joined into one table."),
    "min_tissue": ("too little tissue under the spot", "Usually the edge of the tissue, or a hole in it."),
    "min_focus": ("the patch is out of focus", "Look at the image there; scan the slide again if it is large."),
}
DEFAULT = ("refused by this rule", "The sentence says what was found; correct it and ingest again.")

FLAGS = {
    "low_resolution": "low resolution: kept out of training unless asked",
    "image_reduced": "the image is a reduced copy",
    "image: none": "no image: for expression-only tasks",
    "image_passed_over": "an image beside it was passed over",
    "look_alike": "shares spots or looks with another slide",
    "pseudo_spots": "its spots are sums of bins or cells",
    "pixel_size_placeholder": "a stated pixel size is a placeholder and was not used",
    "symbols_missing": "many genes have no symbol; genes.table can name them",
}


def rule_words(rule: str) -> str:
    """What a rule found wrong, in a few words."""
    return RULES.get(rule, (rule.replace("_", " "), ""))[0]


def next_step(rule: str) -> str:
    """What to do about it, in a sentence."""
    return RULES.get(rule, DEFAULT)[1]


def flag_words(flag: str) -> str:
    """A flag in words."""
    if flag.startswith("expression: "):
        return f"not counts but {flag.removeprefix('expression: ')}, kept as it is"
    if flag.startswith(("outside_spots: ", "cells outside spots: ")):
        share, _, what = flag.split(": ")[1].partition(" of ")
        return f"{share} of the {what or 'cells'} lie between its spots"
    return FLAGS.get(flag, flag.replace("_", " "))
