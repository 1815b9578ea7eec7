"""The figures that have a goal, and what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["GOALS", "Goal"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a figure should be."""

    what: str
    least: float | None = None
    most: float | None = None

    def is_met(self, figure: float) -> bool:
        """Whether the figure is as it should be."""
        return (self.least is None or figure >= self.least) and (self.most is None or figure <= self.most)

    def __str__(self) -> str:
        return f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"

    def missed_by(self, figure: float) -> float:
        """By what share of the goal it is missed; 0 where it is met."""
        bound = self.least if self.least is not None else self.most
        assert bound is not None, "a goal has a bound"
        return 0.0 if self.is_met(figure) else abs(figure - bound) / bound


GOALS: Mapping[str, Goal] = {
    "codec_ratio": Goal(what="pairs a second and core of the ingest over the bare kernel's", least=0.7),
    "loop_speedup": Goal(what="pairs a second on one core over the loop that peers run", least=3.0),
    "two_worker_gain": Goal(what="gain of a second worker over the bare kernel's of a second process", least=0.9),
    "worker_peak_mb": Goal(what="memory of the busiest worker, its own pages, MB", most=1500),
    "driver_mb_per_1000_slides": Goal(what="growth of the driver's memory while it ingests 1,000 slides, MB", most=50),
    "append_cost_ratio": Goal(what="seconds to add a slide to a lake of 10,000 over an empty one", most=1.2),
    "append_metadata_ms": Goal(what="of these, all that is not the slide's rows, ms", most=150),
    "random_vs_parquet": Goal(what="batches of 256 random pairs, rate over tuned Parquet's", least=1.0),
    "random_vs_webdataset": Goal(what="batches of 256 random pairs, rate over WebDataset shards'", least=1.0),
    "scan_vs_parquet": Goal(what="a full scan, rate over tuned Parquet's", least=1.0),
    "scan_vs_webdataset": Goal(what="a full scan, rate over WebDataset shards'", least=1.0),
    "loader_vs_decode": Goal(what="pairs a second, tokens included, over decoding and copying alone", least=0.85),
    "loader_vs_webdataset": Goal(what="pairs a second over a WebDataset loader's of the same pairs", least=1.0),
    "loader_vs_files": Goal(what="pairs a second over a DataLoader's on two files a pair", least=1.0),
    "mfu": Goal(what="model FLOPs utilisation of ViT-L/14 in training, the worst batch, on one H200", least=0.45),
    "step_speedup_vs_open_clip": Goal(what="a step's speed over open_clip's own with its decoder", least=1.3),
    "step_speedup_vs_open_clip_no_decoder": Goal(what="the same without its decoder", least=1.0),
}
