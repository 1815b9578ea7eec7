"""How the service runs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ServiceSettings"]


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Where the service listens and what it may use."""

    host: str = (
        "127.0.0.1"  # address to listen on; the service asks for no password, so keep it on loopback or behind a proxy
    )
    port: int = 8000  # TCP port
    encoder_replicas: int = 1  # processes that hold the model
    encoder_cpus: float = (
        0.5  # cores that Ray sets aside for each of them; below 1 so that a small machine can start it
    )
    encoder_threads: int = 0  # threads torch uses in each of them; 0 takes the cores shared among the replicas
    batch_requests: int = 16  # requests that are embedded together at most
    batch_wait_s: float = 0.004  # seconds that a request waits for company
