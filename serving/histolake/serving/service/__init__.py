"""The running service: the tasks over HTTP, on Ray Serve.

app           the application: `build` is what `histolake serve` and a KubeRay RayService both start
ingress       the routes
deployments   the encoder and the reference, each in processes of its own
bodies        what a request and an answer look like, and how large a request may be
server        starts the application on this machine and stops it
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.serving.service.app import build
    from histolake.serving.service.server import running
    from histolake.serving.service.settings import ServiceSettings

__all__ = ["ServiceSettings", "build", "running"]

_HOME = {"ServiceSettings": "settings", "build": "app", "running": "server"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.serving.service.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
