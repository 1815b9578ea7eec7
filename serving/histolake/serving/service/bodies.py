"""What a request and an answer of the service look like, and how large a request may be."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

__all__ = [
    "MAX_BODY_BYTES",
    "AnnotateAnswer",
    "AnnotateRequest",
    "EmbedAnswer",
    "EmbedRequest",
    "Hit",
    "ModelAnswer",
    "ModelInfo",
    "PredictAnswer",
    "PredictRequest",
    "RetrieveAnswer",
    "RetrieveRequest",
]

MAX_ITEMS = 64  # images or sentences in a request
MAX_IMAGE_BYTES = 2 << 20
MAX_IMAGE_PX = 4096  # width or height
MAX_SENTENCE_CHARS = 8192
MAX_K = 1000
MAX_CLASSES = 256
MAX_GENES = 20_000
MAX_BODY_BYTES = 64 << 20


def _image(value: Any) -> bytes:
    """Bytes of a base64 string whose head says JPEG or PNG of a size that we decode."""
    from PIL import Image, UnidentifiedImageError

    if not isinstance(value, str):
        raise ValueError("an image is a base64 string of a JPEG or PNG file")
    if len(value) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise ValueError(f"an image may have {MAX_IMAGE_BYTES} bytes, this one has about {len(value) * 3 // 4}")
    try:
        data = base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the image is not base64 ({error})") from error
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as head:
            size = head.size
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image's {len(data)} bytes are no JPEG or PNG that can be decoded") from error
    if max(size) > MAX_IMAGE_PX:
        raise ValueError(
            f"the image has {size[0]} x {size[1]} px, more than {MAX_IMAGE_PX}; send the patch around a spot"
        )
    return data


ImageBytes = Annotated[
    bytes,
    BeforeValidator(_image),
    WithJsonSchema({"type": "string", "format": "byte", "description": "JPEG or PNG, base64"}),
]
Images = Annotated[list[ImageBytes], Field(min_length=1, max_length=MAX_ITEMS)]
Sentence = Annotated[str, Field(min_length=1, max_length=MAX_SENTENCE_CHARS, pattern=r"\S")]
Sentences = Annotated[list[Sentence], Field(min_length=1, max_length=MAX_ITEMS)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _ImagesOrSentences(_Request):
    images: Images | None = Field(default=None, description="Patches: JPEG or PNG, base64.")
    sentences: Sentences | None = Field(
        default=None, description="Gene symbols by falling expression, space-separated."
    )

    @model_validator(mode="after")
    def _one(self) -> _ImagesOrSentences:
        if (self.images is None) == (self.sentences is None):
            raise ValueError("give either images or sentences, and only one of them")
        return self


class EmbedRequest(_ImagesOrSentences):
    """Patches or gene sentences to embed."""


class RetrieveRequest(_ImagesOrSentences):
    """Patches or gene sentences whose nearest training pairs are wanted."""

    k: Annotated[int, Field(ge=1, le=MAX_K, description="Hits for each query.")] = 10
    against: Literal["images", "sentences"] | None = Field(
        default=None, description="Side of the pairs to compare with; the other side than the query's if left out."
    )
    exclude_slides: list[str] = Field(default_factory=list, description="Slides whose pairs are left out.")


class PredictRequest(_Request):
    """Patches whose expression is wanted."""

    images: Images
    genes: Annotated[list[str], Field(min_length=1, max_length=MAX_GENES)] | None = Field(
        default=None, description="Symbols; all genes of the model's reference if left out."
    )


class AnnotateRequest(_Request):
    """Patches to put into classes, and each class's marker genes."""

    images: Images
    classes: dict[Annotated[str, Field(min_length=1)], Sentence] = Field(
        min_length=2, max_length=MAX_CLASSES, description='Name to marker genes, such as {"tumour": "ERBB2 KRT8"}.'
    )


class ModelInfo(BaseModel):
    """Which model answered, and what it was made from."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    version: str
    uri: str
    lake_version: int
    simulated: bool


class _Answer(BaseModel):
    model: ModelInfo


class EmbedAnswer(_Answer):
    """One unit vector for each image or sentence."""

    vectors: list[list[float]]


class Hit(BaseModel):
    """A training pair near a query."""

    pair_id: str = Field(description="Hexadecimal.")
    slide_id: str
    barcode: str
    x_px: float
    y_px: float
    score: float = Field(description="Cosine, -1 to 1.")
    sentence: str


class RetrieveAnswer(_Answer):
    """For each query its hits, best first."""

    hits: list[list[Hit]]


class PredictAnswer(_Answer):
    """Expression, one line for each image and one column for each gene: log1p of counts per 10^4."""

    genes: list[str]
    expression: list[list[float]]
    nearest_similarity: list[float] = Field(description="Cosine to the nearest training pair; low: unlike all of them.")


class AnnotateAnswer(_Answer):
    """Cosine of each image with each class, and the class that wins."""

    classes: list[str]
    scores: list[list[float]]
    labels: list[str]


class ModelAnswer(_Answer):
    """The model behind the service."""

    recipe: str
    embed_dim: int
    image_column: str
    image_um: float = Field(description="Micrometres that an image should show from side to side.")
    image_px: int
    lake: str
    run_id: str | None
    reference_pairs: int
    training_slides: list[str]
    genes: list[str] = Field(description="What predict can predict.")
    predict: dict[str, Any] = Field(
        description="How predict is set, as chosen on validation; `mark` says if that is kin to training."
    )
