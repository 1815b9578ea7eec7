"""Where Ray runs: an existing cluster by address, or a quiet one on this machine that listens on loopback only."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

__all__ = ["ClusterSettings", "core_silenced", "start_ray"]


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Where Ray work runs."""

    address: str | None = None  # of a running Ray cluster, or "auto"; empty starts one on this machine
    cpus: int = 0  # slots to offer on this machine; 0 takes the number of cores, at least MIN_CPUS
    object_store_mb: int = 512  # memory for Ray's object store on this machine, MiB


# Two training workers, their controller and one reading task need a slot each, whatever the machine.
MIN_CPUS = 4
START_WAIT_S = 180  # a machine under load takes longer than Ray's own 30 s to start its processes


@contextmanager
def start_ray(settings: ClusterSettings) -> Iterator[None]:
    """Connect to Ray, or start it here, for the length of the block. A Ray that already runs in this process is used
    and left alone.

    Within the block `sys.stdout` is `sys.stderr`: Ray prints what befalls its workers to stdout, which is for results.
    """
    # Ray reads these when it is imported or starts its processes.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its core's notes would stand between our lines
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(START_WAIT_S))
    # glibc keeps a heap for each thread and gives little of it back; Lance has many threads. Writing a section of 5,000
    # spots, a worker came to 1,640 MB so, and to 1,130 MB with two heaps, in the same time.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    import ray

    if ray.is_initialized():
        yield
        return
    with core_silenced():
        _connect(settings)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            with core_silenced():
                ray.shutdown()


def _connect(settings: ClusterSettings) -> None:
    import ray

    if settings.address:
        ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
        return
    ray.init(
        num_cpus=settings.cpus or max(os.cpu_count() or 1, MIN_CPUS),
        object_store_memory=settings.object_store_mb << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )


@contextmanager
def core_silenced() -> Iterator[None]:
    """Ray's core writes notes straight to file descriptor 2 when it starts (its log level) and stops (actors that ended
    as they should, called failures); what goes wrong is a Python exception, and still comes through."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
