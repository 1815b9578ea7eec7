"""OmiCLIP from a checkpoint file as its authors publish it.

Their `checkpoint.pt` is what open_clip's trainer writes of a stock CoCa: a dict whose `state_dict` holds the weights,
under names that DistributedDataParallel and `torch.compile` may have prefixed, beside an epoch, a name and an
optimiser, all of which are left where they are (the file is mapped, so an optimiser of twice the weights' size is never
read). A bare state dict is read too, from `.pt`, `.pth`, `.bin` and `.safetensors`. Nothing in a file is executed.

Which of the known sizes a file holds is told by the names and shapes of its weights alone. What may
differ in such a file and is put right here: a logit scale of shape (1,), and attention masks among the weights. What
differs between the versions of open_clip that wrote them and needs nothing: 2.x (the authors pin 2.26.1) hides padding
from the class token alone and 3.3 from every token, which gives the class token the same vector; captions are shifted
against their labels in the model or in the loss. What is refused: another size, another vocabulary, another
number of tokens (76 and the class token make 77 positions; a model of 77 tokens has 78), and a CLIP, which has no
caption decoder.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from histolake.platform.errors import ModelError
from histolake.training.models.coca import CocaEncoder, build_coca
from histolake.training.models.coca_presets import COCA_PRESETS

__all__ = ["from_published", "read_weights", "recognise"]

Shapes = Mapping[str, tuple[int, ...]]

_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")


def from_published(
    path: str | Path, *, image_column: str = "spot_image", image_um: float | None = None
) -> tuple[CocaEncoder, dict[str, Any]]:
    """The encoder in a checkpoint file, and the fields of its card, ready for `save_model`.

    `image_column` is the picture that it is to read (OmiCLIP was trained on spots), `image_um` that picture's width in
    micrometres. Raises `ModelError`, one sentence, for a file that holds anything else.
    """
    path = Path(path)
    weights = read_weights(path)
    size = recognise({name: tuple(tensor.shape) for name, tensor in weights.items()}, path.name)
    config = {**COCA_PRESETS[size], "image_column": image_column, "tokenizer": "bpe"}
    encoder = build_coca(config)
    encoder.coca.load_state_dict(weights)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    card = {
        "recipe": f"published-{size}",
        "embed_dim": config["embed_dim"],
        "image_column": image_column,
        "image_um": image_um,
        "image_px": config["image_px"],
        "tokenizer": "bpe",
        "context": config["context"],
        "config": {"architecture": "coca", **config},
        "published": {"file": path.name, "sha256": digest, "size": size},
    }
    return encoder, card


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint file by open_clip's names, on the CPU. Raises `ModelError` where there are none."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"There is no checkpoint file {path}; give the file itself, such as checkpoint.pt.")
    held = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    if not isinstance(held, Mapping) or not held or not all(torch.is_tensor(value) for value in held.values()):
        raise ModelError(
            f"{path.name} holds {_kind(held)}; a checkpoint holds tensors by name, or a dict whose 'state_dict' does."
        )
    weights = {_PREFIXES.sub("", str(name)): tensor for name, tensor in held.items()}
    weights = {name: tensor for name, tensor in weights.items() if name.rpartition(".")[2] != "attn_mask"}
    if "logit_scale" in weights and weights["logit_scale"].numel() == 1:
        weights["logit_scale"] = weights["logit_scale"].reshape(())
    return weights


def recognise(shapes: Shapes, what: str = "The checkpoint") -> str:
    """The preset whose weights have these names and shapes. Raises `ModelError` that says what was found and what the
    nearest preset expects."""
    differences = {size: _Difference(shapes, _expected(size)) for size in COCA_PRESETS}
    nearest = min(differences, key=lambda size: differences[size].count)
    if differences[nearest].count:
        raise ModelError(
            f"{what} holds {_described(shapes)}, which is no CoCa of a known size ({', '.join(COCA_PRESETS)}): "
            f"against {nearest} {differences[nearest]}."
        )
    return nearest


class _Difference:
    """What a file's weights lack, have too much, or have in another shape."""

    def __init__(self, found: Shapes, expected: Shapes) -> None:
        self._found = found
        self._expected = expected
        self._missing = [name for name in expected if name not in found]
        self._unexpected = [name for name in found if name not in expected]
        self._odd = [name for name in expected if name in found and found[name] != expected[name]]
        self.count = len(self._missing) + len(self._unexpected) + len(self._odd)

    def __str__(self) -> str:
        parts = [
            f"it {verb} {len(names)} weights (the first is {names[0]}{self._shapes(names[0])})"
            for verb, names in (
                ("lacks", self._missing),
                ("has besides", self._unexpected),
                ("has in another shape", self._odd),
            )
            if names
        ]
        return ", ".join(parts)

    def _shapes(self, name: str) -> str:
        if name in self._found and name in self._expected:
            return f": {self._found[name]} and not {self._expected[name]}"
        return ""


@cache
def _expected(size: str) -> Shapes:
    """Names and shapes of a preset's weights; nothing is allocated."""
    with torch.device("meta"):
        encoder = build_coca(COCA_PRESETS[size])
    return {name: tuple(tensor.shape) for name, tensor in encoder.coca.state_dict().items()}


def _described(shapes: Shapes) -> str:
    """What an open_clip model of these weights is, in words; the first names where it is none."""

    def layers(tower: str) -> int:
        return len({name.split(".resblocks.")[1].split(".")[0] for name in shapes if name.startswith(f"{tower}.resb")})

    patches = shapes.get("visual.conv1.weight")
    text = "text." if "text.positional_embedding" in shapes else ""
    tokens, words = shapes.get(f"{text}positional_embedding"), shapes.get(f"{text}token_embedding.weight")
    if patches is None or tokens is None or words is None or len(patches) != 4:
        return f"{len(shapes)} weights such as {', '.join(sorted(shapes)[:2])}"
    context = tokens[0] - ("text.cls_emb" in shapes)
    decoder = layers("text_decoder")
    return (
        f"a ViT of patch {patches[-1]}, width {patches[0]} and {layers('visual.transformer')} layers with a text tower "
        f"of width {tokens[1]}, {layers(f'{text}transformer')} layers, {context} tokens and {words[0]} words and "
        f"{f'a caption decoder of {decoder} layers' if decoder else 'no caption decoder (a CLIP)'}"
    )


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path.name} is no safetensors file that can be read ({error}); fetch it again.") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{path.name} is no checkpoint that can be read as tensors alone ({reason[:160]}); "
            "fetch it again, or save its 'state_dict' by itself."
        ) from error


def _kind(held: Any) -> str:
    if isinstance(held, Mapping):
        return f"a dict of {', '.join(map(str, list(held)[:4])) or 'nothing'}"
    return f"a {type(held).__name__}"
