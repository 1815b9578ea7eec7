"""The routes. They check a request, ask the encoder and the library, and say which model answered; nothing more.

Annotations are real objects here, not strings (no `from __future__ import annotations`): Serve builds the routes anew
in its own processes, where FastAPI could not look the names up.
"""

import json
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from ray import serve
from ray.serve.handle import DeploymentHandle

from histolake.platform import __version__
from histolake.serving.service.bodies import (
    MAX_BODY_BYTES,
    AnnotateAnswer,
    AnnotateRequest,
    EmbedAnswer,
    EmbedRequest,
    ModelAnswer,
    PredictAnswer,
    PredictRequest,
    RetrieveAnswer,
    RetrieveRequest,
)
from histolake.serving.service.deployments import Refusal
from histolake.serving.tasks import annotate

__all__ = ["Ingress", "api"]

api = FastAPI(
    title="histolake",
    version=__version__,
    description="Ask a model that was trained on histology paired with spatial gene expression. Every answer names the "
    "model and the version of the lake it was trained on. Errors are one sentence in `detail`.",
)


class _RefusedError(Exception):
    """Ends a request with 422 and one sentence."""


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(content), status_code=status, media_type="application/json")


@api.exception_handler(_RefusedError)
async def _refused(request: Request, error: _RefusedError) -> Response:
    return _json({"detail": str(error)}, 422)


@api.exception_handler(RequestValidationError)
async def _invalid(request: Request, error: RequestValidationError) -> Response:
    """All that is wrong with a body, in one sentence."""
    faults = []
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"] if part != "body")
        message = fault["msg"].removeprefix("Value error, ")
        faults.append(f"{place}: {message}" if place else message)
    return _json({"detail": "; ".join(faults)}, 422)


@api.middleware("http")
async def _limit_body(request: Request, call_next: Any) -> Response:
    """Refuse a body by its announced length, before it is read."""
    if request.method == "POST":
        length = request.headers.get("content-length", "")
        if not length.isdigit():
            return _json({"detail": "The request announces no Content-Length; send the body in one piece."}, 411)
        if int(length) > MAX_BODY_BYTES:
            return _json(
                {"detail": f"The body has {length} bytes; at most {MAX_BODY_BYTES} are read. Send fewer images."}, 413
            )
    answer: Response = await call_next(request)
    return answer


def _granted(result: Any) -> Any:
    if isinstance(result, Refusal):
        raise _RefusedError(result.sentence)
    return result


@serve.deployment
@serve.ingress(api)
class Ingress:
    """The face of the service."""

    def __init__(
        self, info: dict[str, Any], card: dict[str, Any], encoder: DeploymentHandle, library: DeploymentHandle
    ) -> None:
        self._info = info
        self._card = card
        self._encoder = encoder
        self._library = library

    def _answer(self, **content: Any) -> Response:
        return _json({"model": self._info, **content})

    async def _images(self, images: list[bytes]) -> np.ndarray:
        vectors: np.ndarray = _granted(await self._encoder.images.remote(images))
        return vectors

    async def _sentences(self, sentences: list[str]) -> np.ndarray:
        vectors: np.ndarray = _granted(await self._encoder.sentences.remote(sentences))
        return vectors

    async def _vectors(self, body: EmbedRequest | RetrieveRequest) -> np.ndarray:
        if body.images is not None:
            return await self._images(body.images)
        assert body.sentences is not None
        return await self._sentences(body.sentences)

    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Answers once the service can be asked."""
        return {"status": "ok"}

    @api.get("/v1/model", response_model=ModelAnswer)
    async def model(self) -> Response:
        """The model behind the service: what it is, what it learned from, what it can predict."""
        keys = ("recipe", "embed_dim", "image_column", "image_um", "image_px")
        about = {key: self._card[key] for key in keys}
        held = await self._library.describe.remote()
        return self._answer(**about, lake=self._card["lake"]["uri"], run_id=self._card.get("run_id"), **held)

    @api.post("/v1/embed", response_model=EmbedAnswer)
    async def embed(self, body: EmbedRequest) -> Response:
        """Unit vectors of patches or of gene sentences."""
        return self._answer(vectors=(await self._vectors(body)).tolist())

    @api.post("/v1/retrieve", response_model=RetrieveAnswer)
    async def retrieve(self, body: RetrieveRequest) -> Response:
        """The training pairs nearest to each patch or sentence."""
        vectors_ND = await self._vectors(body)
        against = body.against or ("sentences" if body.images is not None else "images")
        found = await self._library.retrieve.remote(vectors_ND, body.k, against, body.exclude_slides)
        return self._answer(hits=_granted(found))

    @api.post("/v1/predict", response_model=PredictAnswer)
    async def predict(self, body: PredictRequest) -> Response:
        """Gene expression of patches."""
        found = await self._library.predict.remote(await self._images(body.images), body.genes)
        return self._answer(**_granted(found))

    @api.post("/v1/annotate", response_model=AnnotateAnswer)
    async def annotate(self, body: AnnotateRequest) -> Response:
        """Which of the classes, each given by marker genes, a patch looks like."""
        image_ND = await self._images(body.images)
        class_CD = await self._sentences(list(body.classes.values()))
        found = annotate(image_ND, class_CD)
        names = list(body.classes)
        labels = [names[int(best)] for best in found.best_N]
        return self._answer(classes=names, scores=found.scores_NC.tolist(), labels=labels)
