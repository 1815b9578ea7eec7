"""Claims: one of several processes does a piece of work, the others pass it by.

A claim is a lease (`leases/<kind>-<what>.json`) that is created only if it is not there. A dead one is taken over by
whoever seals it first. A claim saves work; it is no lock to build correctness on: a holder that was silent for longer
than a lease lives, and comes back, still believes in it. What is written under a claim must bear being written twice.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from histolake.platform.lake.leases import Lease, LeaseKeeper, read_lease
from histolake.platform.storage import Location

__all__ = ["claimed", "let_go", "take"]


def take(root: Location, keeper: LeaseKeeper, kind: str, what: str) -> str | None:
    """Claim a piece of work; the claim's id, or None where another live process has it."""
    now = time.time()
    claim_id = f"{kind}-{what}"
    if claim_id in keeper.held:
        return None
    purpose = f"{kind} {what} ({uuid.uuid4().hex})"  # the file is like no other's: by it a store's answer is known
    claim = Lease(lease_id=claim_id, kind=kind, purpose=purpose, started_s=now, renewed_s=now)
    if claim.location(root).create(json.dumps(asdict(claim)).encode()):
        keeper.hold(claim)
        return claim_id
    holder = read_lease(root, claim_id)
    if holder is None or holder.is_live() or not claim.seal(root, kind):
        return None
    # Sealed. Whoever sealed it before us wrote a lease of its own before it took its seal away.
    seal = root.join("leases", f"{claim_id}.seal")
    try:
        holder = read_lease(root, claim_id)
        if holder is not None and holder.is_live():
            return None
        keeper.hold(claim)
        return claim_id
    finally:
        seal.delete()


def let_go(keeper: LeaseKeeper, claim_id: str) -> None:
    """Give a claim back."""
    keeper.release(claim_id)


@contextmanager
def claimed(root: Location, keeper: LeaseKeeper, kind: str, what: str) -> Iterator[bool]:
    """Whether the work is ours, for the length of a block."""
    claim_id = take(root, keeper, kind, what)
    try:
        yield claim_id is not None
    finally:
        if claim_id is not None:
            let_go(keeper, claim_id)
