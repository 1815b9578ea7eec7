"""Starts the service on this machine (or on the Ray cluster of the settings) and stops it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from histolake.platform.cluster import ClusterSettings, core_silenced, start_ray
from histolake.platform.errors import UsageError
from histolake.serving.client import Client
from histolake.serving.service.settings import ServiceSettings

__all__ = ["running"]

APPLICATION = "histolake"
READY_TIMEOUT_S = 120.0


@contextmanager
def running(model: str, service: ServiceSettings, cluster: ClusterSettings) -> Iterator[str]:
    """Serve `model` for the length of the block; yields the URL once it answers. Nothing is left running after it.

    Raises `UsageError` if the port is taken, `ModelError` if there is no such model.
    """
    _check_port(service.host, service.port)
    with start_ray(cluster):
        from ray import serve

        from histolake.serving.service.app import BuildArgs, build

        application = build(
            BuildArgs(
                model=model,
                encoder_replicas=service.encoder_replicas,
                encoder_cpus=service.encoder_cpus,
                encoder_threads=service.encoder_threads,
            )
        )
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": service.host, "port": service.port})
            serve.run(application, name=APPLICATION, route_prefix="/")
            url = f"http://{_reachable(service.host)}:{service.port}"
            with Client(url) as client:
                client.wait(READY_TIMEOUT_S)
            yield url
        finally:
            if cluster.address:
                serve.delete(APPLICATION)  # the cluster and what else it serves belong to others
            else:
                with core_silenced():
                    serve.shutdown()


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"Port {port} of {host} cannot be listened on ({error.strerror}); choose another with --port."
            ) from error


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host
