"""The most variable of the well expressed genes of some pairs, from a sample of bounded size."""

from __future__ import annotations

import numpy as np

from histolake.platform.splits import Selection
from histolake.training.expression import GeneChooser

__all__ = ["MOST_SPOTS", "variable_genes"]

MOST_SPOTS = 50_000  # spots that are looked at, in whole runs of a slide's rows from anywhere in the pairs
RUN_ROWS = 256


def variable_genes(pairs: Selection, count: int) -> np.ndarray:
    """Ids of at most `count` genes, int64, by falling variance; the same for the same pairs."""
    parts = pairs.parts(rows=RUN_ROWS)
    order = np.random.default_rng(0).permutation(len(parts))
    rows = np.cumsum([parts[n].rows for n in order])
    taken = np.sort(order[: int(np.searchsorted(rows, MOST_SPOTS)) + 1])
    chooser = GeneChooser()
    for part in (parts[n] for n in taken):
        picked = None if part.bits is None else part.picked()
        table = pairs.snapshot.read(part.chunk, ["gene_ids", "counts"], picked)
        genes = table["gene_ids"].combine_chunks()
        sizes = genes.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        chooser.add(genes.flatten().to_numpy(), table["counts"].combine_chunks().flatten().to_numpy(), sizes)
    return chooser.choose(count)
