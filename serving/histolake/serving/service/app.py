"""The application that is served, the same here and on a Kubernetes cluster.

`histolake serve` runs `build` on this machine. A KubeRay RayService names it as its import path:

    applications:
      - name: histolake
        import_path: histolake.serving.service.app:build
        args: {model: "models:/omiclip@champion"}
"""

from __future__ import annotations

import json
import os
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from histolake.platform.settings import load_settings
from histolake.serving.published import find_published
from histolake.serving.service.deployments import Encoder, Library
from histolake.serving.service.ingress import Ingress
from histolake.serving.service.settings import ServiceSettings

__all__ = ["BuildArgs", "build"]

# Requests are many and alike; what goes wrong is logged.
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
LIBRARY_CPUS = 0.1
INGRESS_CPUS = 0.1


class BuildArgs(BaseModel):
    """What an application is built from; empty values come from the settings (`[service]`, `HISTOLAKE_SERVICE__*`)."""

    model_config = ConfigDict(extra="forbid")

    model: str = "models:/omiclip@champion"
    encoder_replicas: int | None = None
    encoder_cpus: float | None = None
    encoder_threads: int | None = None


def build(args: BuildArgs) -> Application:
    """The application for one model. Its alias is resolved here, once, so that all replicas serve the same version.

    Raises `ModelError` if there is no such model.
    """
    given = args.model_dump(exclude={"model"}, exclude_none=True)
    loaded = load_settings({f"service.{key}": value for key, value in given.items()})
    settings: ServiceSettings = loaded.section("service")
    published = find_published(args.model, loaded)
    card = json.loads((published.local() / "model.json").read_text())
    info = {
        "name": published.name,
        "version": published.version,
        "uri": published.uri,
        "lake_version": int(card["lake"]["version"]),
        "simulated": bool(card["simulated"]),
    }
    threads = settings.encoder_threads or max(1, (os.cpu_count() or 1) // settings.encoder_replicas)
    encoder = _placed(
        Encoder,
        num_replicas=settings.encoder_replicas,
        ray_actor_options={"num_cpus": settings.encoder_cpus},
        user_config={"requests": settings.batch_requests, "wait_s": settings.batch_wait_s},
    ).bind(published, threads)
    library = _placed(Library, ray_actor_options={"num_cpus": LIBRARY_CPUS}).bind(published)
    face: Application = _placed(Ingress, ray_actor_options={"num_cpus": INGRESS_CPUS}).bind(
        info, card, encoder, library
    )
    return face


def _placed(deployment: Any, **options: Any) -> Any:
    """What `serve.deployment` makes of a class has no types."""
    return deployment.options(logging_config=QUIET, **options)
