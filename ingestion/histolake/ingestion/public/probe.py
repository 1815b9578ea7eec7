"""Whether the network has a public cohort, and which is the smallest: asked shortly, for the demo.

Nothing is fetched here. The server is asked for the sizes of the files (HEAD), within seconds that are counted: where
no network answers, the demo goes on after `public.probe_s` at the latest.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from histolake.ingestion.public.catalogue import MEGABYTE, Catalogue, Cohort, PublicSettings

__all__ = ["Offer", "demo_cohorts", "smallest_within"]

ASKING = 8  # questions under way at once; an answer is a few hundred bytes


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What the probe found: a cohort and its size, or none and why."""

    cohort: Cohort | None
    size_bytes: int = 0
    why_none: str = ""


def demo_cohorts(catalogue: Catalogue) -> list[Cohort]:
    """The cohorts that the demo can be shown on: human, for its genes and markers are, with an H&E image."""
    return [
        cohort
        for cohort in catalogue.cohorts.values()
        if all(section.species == "human" and section.stain == "H&E" for section in cohort.sections)
    ]


def smallest_within(cohorts: Sequence[Cohort], settings: PublicSettings) -> Offer:
    """The cohort with the fewest bytes, by what the server says now, if it is within `demo_mb`."""
    host = urlsplit(settings.base_url).netloc
    urls = sorted({file.url(settings.base_url) for cohort in cohorts for _, file in cohort.files})
    if not urls:
        return Offer(cohort=None, why_none="no public cohort is listed for it")
    if _sizes(urls[:1], settings) == {}:
        return Offer(cohort=None, why_none=f"the network has no {host} (asked for at most {settings.probe_s:g} s)")
    sizes = _sizes(urls, settings)
    totals = []
    for cohort in cohorts:
        each = [sizes.get(file.url(settings.base_url)) for _, file in cohort.files]
        known = [size for size in each if size is not None]
        if len(known) == len(each):
            totals.append((sum(known), cohort.name, cohort))
    if not totals:
        return Offer(cohort=None, why_none=f"{host} did not tell the sizes of its files")
    size, _, cohort = min(totals, key=lambda total: total[:2])
    if size > settings.demo_mb * MEGABYTE:
        return Offer(
            cohort=None,
            why_none=f"the smallest public cohort, {cohort.name}, is {size / MEGABYTE:.0f} MB, "
            f"more than public.demo_mb allows ({settings.demo_mb})",
        )
    return Offer(cohort=cohort, size_bytes=size)


def _sizes(urls: Sequence[str], settings: PublicSettings) -> dict[str, int | None]:
    """url -> bytes of those that were answered within `probe_s`; None where the answer names no size.

    The threads are daemons and nobody waits for them after that: looking up a name cannot be given a time limit.
    """
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    for url in urls:
        todo.put(url)
    answers: queue.SimpleQueue[tuple[str, int | None] | None] = queue.SimpleQueue()
    until = time.monotonic() + settings.probe_s
    for _ in range(min(ASKING, len(urls))):
        threading.Thread(target=_ask, args=(todo, answers, settings, until), daemon=True).start()
    found: dict[str, int | None] = {}
    for _ in urls:
        try:
            answer = answers.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        if answer is not None:
            found[answer[0]] = answer[1]
    return found


def _ask(
    todo: queue.SimpleQueue[str],
    answers: queue.SimpleQueue[tuple[str, int | None] | None],
    settings: PublicSettings,
    until: float,
) -> None:
    import httpx

    from histolake.ingestion.public.download import connect

    with connect(settings) as client:
        while time.monotonic() < until:
            try:
                url = todo.get_nowait()
            except queue.Empty:
                return
            answer: Any = None
            try:
                answer = client.head(url, timeout=settings.probe_s)
            except httpx.HTTPError:
                answers.put(None)
                continue
            length = answer.headers.get("Content-Length", "")
            answers.put((url, int(length) if length.isdigit() else None) if answer.is_success else None)
