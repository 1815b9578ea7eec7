"""Ask a running service from Python.

with Client("http://127.0.0.1:8000") as client:
    client.wait(60)
    vectors_ND = client.embed(images=[jpeg])
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
import numpy as np

from histolake.platform.errors import ServiceError

__all__ = ["Annotated", "Client", "Predicted"]


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Served expression: log1p of counts per 10^4."""

    genes: list[str]
    expression_NG: np.ndarray
    nearest_similarity_N: np.ndarray
    model: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """Served classes."""

    classes: list[str]
    scores_NC: np.ndarray
    labels: list[str]
    model: dict[str, Any]


class Client:
    """A connection to one service. Raises `ServiceError` with the service's own sentence when it refuses."""

    def __init__(self, url: str, timeout_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def healthy(self) -> bool:
        """Whether the service answers now."""
        try:
            return self._http.get("/healthz", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def wait(self, timeout_s: float = 60.0) -> None:
        """Return when the service answers; raises `ServiceError` after `timeout_s` seconds."""
        end = time.monotonic() + timeout_s
        while not self.healthy():
            if time.monotonic() > end:
                raise ServiceError(
                    f"No service has answered at {self.url} for {timeout_s:g} s; start one with `histolake serve`."
                )
            time.sleep(0.1)

    def model(self) -> dict[str, Any]:
        """The model behind the service."""
        return self._ask("GET", "/v1/model")

    def embed(self, *, images: Sequence[bytes] | None = None, sentences: Sequence[str] | None = None) -> np.ndarray:
        """Unit vectors float32 (N, D) of JPEG or PNG bytes, or of gene sentences."""
        answer = self._ask("POST", "/v1/embed", _inputs(images, sentences))
        return np.asarray(answer["vectors"], dtype=np.float32)

    def retrieve(
        self,
        *,
        images: Sequence[bytes] | None = None,
        sentences: Sequence[str] | None = None,
        k: int = 10,
        exclude_slides: Sequence[str] = (),
        against: str | None = None,
    ) -> list[list[dict[str, Any]]]:
        """For each query its k nearest training pairs, best first: pair_id, slide_id, barcode, x_px, y_px, score,
        sentence. `against`: "images" or "sentences" of the pairs; the other side than the query's if None."""
        body = {**_inputs(images, sentences), "k": k, "exclude_slides": list(exclude_slides), "against": against}
        hits: list[list[dict[str, Any]]] = self._ask("POST", "/v1/retrieve", body)["hits"]
        return hits

    def predict(self, images: Sequence[bytes], genes: Sequence[str] | None = None) -> Predicted:
        """Expression of patches, of the genes named or of all that the model predicts."""
        body = {**_inputs(images, None), "genes": None if genes is None else list(genes)}
        answer = self._ask("POST", "/v1/predict", body)
        return Predicted(
            genes=answer["genes"],
            expression_NG=np.asarray(answer["expression"], dtype=np.float32),
            nearest_similarity_N=np.asarray(answer["nearest_similarity"], dtype=np.float32),
            model=answer["model"],
        )

    def annotate(self, images: Sequence[bytes], classes: Mapping[str, str]) -> Annotated:
        """The class that each patch looks like; `classes` maps a name to its marker genes, space-separated."""
        answer = self._ask("POST", "/v1/annotate", {**_inputs(images, None), "classes": dict(classes)})
        return Annotated(
            classes=answer["classes"],
            scores_NC=np.asarray(answer["scores"], dtype=np.float32),
            labels=answer["labels"],
            model=answer["model"],
        )

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            raise ServiceError(
                f"The service at {self.url} does not answer ({error}); is `histolake serve` running?"
            ) from error
        if answer.status_code != 200:
            raise ServiceError(f"{path} was refused with {answer.status_code}: {_sentence(answer)}")
        content: dict[str, Any] = answer.json()
        return content


def _inputs(images: Sequence[bytes] | None, sentences: Sequence[str] | None) -> dict[str, Any]:
    """The part of a body that asks; the service says what is wrong with it."""
    body: dict[str, Any] = {}
    if images is not None:
        body["images"] = [base64.b64encode(image).decode() for image in images]
    if sentences is not None:
        body["sentences"] = list(sentences)
    return body


def _sentence(answer: httpx.Response) -> str:
    try:
        content = answer.json()
    except ValueError:
        return answer.text.strip()[:500] or "no reason given"
    return str(content.get("detail", content)) if isinstance(content, dict) else str(content)
