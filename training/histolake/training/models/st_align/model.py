"""ST-Align (arXiv 2411.16793): a spot and its niche, each as a picture and as genes, in one space.

    spot picture    trainable ResNet-50 on 28 px               -> spot_image  \
    spot genes      frozen gene encoder's vector (a table)     -> spot_genes  / fusion -> spot
    niche picture   frozen pathology encoder on 224 px         -> niche_image \
    niche genes     trainable Transformer on the mean profile  -> niche_genes / fusion -> niche

Every tower ends in a linear map to d numbers; the vectors are unit rows, the fusion reads them before they are scaled.
The paper gives neither d nor the tokens of its fusion; 512 and 8 are ours.

A batch may lack what a vector needs: only the vectors whose inputs are there are made. Rows that lack a modality hold
zeros and change no other row's vectors in evaluation; in training they are seen by the batch statistics of the ResNet.

Axes: B pairs, D embedding, G genes, W width of a frozen encoder's vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from histolake.platform.errors import ModelError
from histolake.training.inputs import Input, Picture, Profile, Vector
from histolake.training.models.frozen.encoder import FrozenImageEncoder
from histolake.training.models.frozen.facts import facts_of
from histolake.training.models.st_align.fusion import AttentionFusion
from histolake.training.models.st_align.niche_genes import GeneProjection, NicheGeneEncoder
from histolake.training.models.st_align.shared_batchnorm import SharedBatchNorm2d, share_batchnorm
from histolake.training.models.st_align.spot_image import SpotImageEncoder

__all__ = ["StAlign", "StAlignConfig", "build_st_align"]

LEVELS = ("spot", "niche")


@dataclass(frozen=True, kw_only=True)
class StAlignConfig:
    """Sizes and parts. The defaults are the paper's where it gives them."""

    gene_ids: tuple[int, ...] = ()  # of the lake, in the order in which profiles are read
    embed_dim: int = 512  # d, numbers in a vector
    fusion_tokens: int = 8  # s, tokens that the fusion reads of a vector
    fusion_scale: str = "printed"  # printed: attention over sqrt(d); tokens: over sqrt(d / s)
    spot_px: int = 28  # pixels, width of a spot's picture
    spot_depth: int = 50  # layers of the ResNet: 10, 18 or 50
    spot_width: int = 64  # channels of its first stage
    sync_batchnorm: bool = True  # batch statistics over all workers
    niche_px: int = 224  # pixels, width of a niche's picture
    image_encoder: str = "uni"  # the frozen one, by name
    image_weights: str = ""  # its file; empty: what its package ships, or the folder of the settings
    gene_encoder: str = "vector"  # vector: from a table of embeddings; projection: a fixed random one of the profile
    vector_table: str = "scgpt"  # the lake's table of embeddings
    vector_width: int = 512  # numbers in its vectors, or in the projection's
    niche_patch_genes: int = 256  # genes in one token of a niche's profile
    niche_width: int = 512  # numbers in a token
    niche_layers: int = 6
    niche_heads: int = 8
    niche_dropout: float = 0.1  # share
    init_temperature: float = 0.07
    learn_temperature: bool = False
    min_temperature: float = 0.01
    # For ablations (see ablations.py).
    encoders: str = "trained"  # frozen: spots through the frozen image encoder, niche profiles through a projection
    fusion: str = "attention"  # attention | concatenate | none
    train_fusion: bool = True  # False: it keeps the weights that it starts with
    project: bool = True  # False: frozen vectors as they are, of single spots; nothing is trained
    modalities: str = "both"  # both | image | genes

    def __post_init__(self) -> None:
        object.__setattr__(self, "gene_ids", tuple(int(gene) for gene in self.gene_ids))
        for name, known in (
            ("gene_encoder", ("vector", "projection")),
            ("encoders", ("trained", "frozen")),
            ("fusion", ("attention", "concatenate", "none")),
            ("modalities", ("both", "image", "genes")),
        ):
            if getattr(self, name) not in known:
                raise ModelError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}.")
        if self.fusion != "none" and self.modalities != "both":
            raise ModelError(f"fusion is {self.fusion!r} with modalities {self.modalities!r}; set fusion to 'none'.")
        if not self.project and (self.encoders == "trained" or self.fusion == "attention"):
            raise ModelError("project is false, so nothing is trained; set encoders to 'frozen' and fusion to another.")


class StAlign(nn.Module):
    """The whole model: a batch in, named unit rows and the scale out."""

    def __init__(self, config: StAlignConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = LEVELS if config.project else LEVELS[:1]
        self.embed_dim = config.embed_dim
        bodies: dict[str, nn.Module] = {}
        if config.modalities != "genes":
            # The frozen encoder sees niches as wide as they are read where it can, else at its own width.
            px = config.niche_px if facts_of(config.image_encoder).resizable else None
            self.image_encoder = FrozenImageEncoder(config.image_encoder, px=px)
            if config.encoders == "trained":
                bodies["spot_image"] = SpotImageEncoder(
                    px=config.spot_px, depth=config.spot_depth, base_width=config.spot_width
                )
        if config.modalities != "image":
            bodies.update(self._gene_bodies())
        self.bodies = nn.ModuleDict(bodies)
        self.heads = nn.ModuleDict({name: self._head(name) for name in self._towers()} if config.project else {})
        self.fusions = nn.ModuleDict()
        if config.fusion == "attention":
            for level in self.levels:
                self.fusions[level] = AttentionFusion(config.embed_dim, config.fusion_tokens, scale=config.fusion_scale)
            self.fusions.requires_grad_(config.train_fusion)
        self.inputs = self._inputs()
        self.vector_needs = self._needs()
        self._max_log_scale = -math.log(config.min_temperature)
        start = -torch.tensor(config.init_temperature).log()
        self.log_scale = nn.Parameter(start, requires_grad=config.learn_temperature and config.project)

    # What it is made of.

    def _gene_bodies(self) -> dict[str, nn.Module]:
        config, genes = self.config, len(self.config.gene_ids)
        made: dict[str, nn.Module] = {}
        if config.gene_encoder == "projection":
            made["spot_genes"] = GeneProjection(genes, config.vector_width)
        if "niche" not in self.levels:
            return made
        if config.encoders == "frozen":
            made["niche_genes"] = GeneProjection(genes, config.vector_width)
        else:
            if not genes:
                raise ModelError("gene_ids is empty; list the lake's gene ids that the niche encoder reads.")
            made["niche_genes"] = NicheGeneEncoder(
                genes,
                patch_genes=config.niche_patch_genes,
                width=config.niche_width,
                layers=config.niche_layers,
                heads=config.niche_heads,
                dropout=config.niche_dropout,
            )
        return made

    def _towers(self) -> list[str]:
        kinds = ["image", "genes"] if self.config.modalities == "both" else [self.config.modalities]
        return [f"{level}_{kind}" for level in self.levels for kind in kinds]

    def _head(self, name: str) -> nn.Module:
        """The linear map to d; what comes from a frozen encoder is standardised first, since its spread is anything."""
        body = dict(self.bodies.named_children()).get(name)
        width = int(getattr(body, "width", 0)) or (
            self.config.vector_width if name == "spot_genes" else self.image_encoder.width
        )
        linear = nn.Linear(width, self.embed_dim)
        trained = body is not None and any(p.requires_grad for p in body.parameters())
        return linear if trained else nn.Sequential(nn.LayerNorm(width), linear)

    def _inputs(self) -> tuple[Input, ...]:
        config = self.config
        every: dict[str, Input] = {}
        if config.modalities != "genes":
            px = config.spot_px if config.encoders == "trained" else self.image_encoder.tower.px
            every["spot_image"] = Picture(column="spot_image", px=px)
            every["niche_image"] = Picture(column="niche_image", px=config.niche_px)
        if config.modalities != "image":
            if config.gene_encoder == "vector":
                every["spot_genes"] = Vector(table=config.vector_table, width=config.vector_width)
            else:
                every["spot_genes"] = Profile(of="spot", gene_ids=config.gene_ids)
            if "niche" in self.levels:
                every["niche_genes"] = Profile(of="niche", gene_ids=config.gene_ids)
        return tuple(every[name] for name in self._towers())

    def _needs(self) -> Mapping[str, tuple[str, ...]]:
        needs: dict[str, tuple[str, ...]] = {
            name: (one.key,) for name, one in zip(self._towers(), self.inputs, strict=True)
        }
        if self.config.fusion != "none":
            for level in self.levels:
                needs[level] = needs[f"{level}_image"] + needs[f"{level}_genes"]
        return needs

    # Weights that are not trained.

    @property
    def frozen(self) -> Mapping[str, FrozenImageEncoder]:
        """The frozen encoders by the field of the configuration that names their file."""
        return {"image_weights": self.image_encoder} if hasattr(self, "image_encoder") else {}

    def load_frozen(self, files: Mapping[str, str] | None = None) -> None:
        """Give the frozen encoder its weights, from the configuration's file or from `files["image_weights"]`."""
        for field_name, encoder in self.frozen.items():
            encoder.load_weights((files or {}).get(field_name) or getattr(self.config, field_name))

    def synchronise_batchnorm(self, device: str) -> None:
        """Batch statistics over all workers from now on, as the paper trains: by torch on GPUs, by our own sums on
        CPUs. Names and shapes of the state stay. Call it before the model is wrapped for distribution."""
        if not self.config.sync_batchnorm or "spot_image" not in self.bodies:
            return
        if torch.device(device).type == "cpu":
            share_batchnorm(self.bodies["spot_image"])
        else:
            self.bodies["spot_image"] = nn.SyncBatchNorm.convert_sync_batchnorm(self.bodies["spot_image"])

    def compile_parts(self) -> list[nn.Module]:
        """The pieces to compile by themselves (see `precision.compiled`): layers that repeat, and the ResNet where its
        batch statistics are its own; sums over processes stay out of a graph."""
        parts: list[nn.Module] = []
        if hasattr(self, "image_encoder"):
            parts += list(getattr(self.image_encoder.tower.net, "blocks", []))
        if "niche_genes" in self.bodies and isinstance(self.bodies["niche_genes"], NicheGeneEncoder):
            parts += list(self.bodies["niche_genes"].layers.layers)
        spot = dict(self.bodies.named_children()).get("spot_image")
        shared = (SharedBatchNorm2d, nn.SyncBatchNorm)
        if isinstance(spot, SpotImageEncoder) and not any(isinstance(each, shared) for each in spot.modules()):
            parts.append(spot.net)
        return parts

    # What it does.

    def scale(self) -> torch.Tensor:
        """1 / temperature."""
        return self.log_scale.clamp(max=self._max_log_scale).exp()

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Unit rows (B, D) by name, of every vector whose inputs are in the batch, and `scale`."""
        raw = {
            name: self._vector(name, batch[one.key])
            for name, one in zip(self._towers(), self.inputs, strict=True)
            if one.key in batch
        }
        out = {name: F.normalize(vector_BD, dim=-1) for name, vector_BD in raw.items()}
        for level in self.levels if self.config.fusion != "none" else ():
            image, genes = f"{level}_image", f"{level}_genes"
            if image not in raw or genes not in raw:
                continue
            if self.config.fusion == "attention":
                out[level] = F.normalize(self.fusions[level](raw[image], raw[genes]), dim=-1)
            else:  # each half of unit length, so that neither modality outweighs the other by its spread
                out[level] = F.normalize(torch.cat([out[image], out[genes]], dim=-1), dim=-1)
        out["scale"] = self.scale()
        return out

    def encode_images(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        """Unit rows of spot pictures alone: what is served where there are no genes."""
        return self.forward({"spot_image": image_BHWC})["spot_image"]

    def _vector(self, name: str, given: torch.Tensor) -> torch.Tensor:
        """A tower's vector before it is scaled to unit length."""
        if name in self.bodies:
            given = self.bodies[name](given)
        elif name.endswith("_image"):
            given = self.image_encoder(given)
        if name not in self.heads:
            return given
        return self.heads[name](given.to(next(self.heads[name].parameters()).dtype))


def build_st_align(config: Mapping[str, Any]) -> StAlign:
    """A fresh model of that configuration; the frozen encoder's weights come with `load_frozen` or a state dict."""
    return StAlign(StAlignConfig(**config))
