"""A weight file as its authors publish it, under the names of the network that we build.

Four ways of naming one Vision Transformer are around (timm, DINOv2, and transformers' of CLIP and of DINOv2), and two
ages of timm's Swin. The names in the file tell which it is. What is renamed is then loaded strictly: each tensor of the
network once, each of its shape, none left over but a classifier and what only training needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from histolake.platform.errors import ModelError
from histolake.training.models.frozen.facts import EncoderFacts

__all__ = ["load_checkpoint", "read_state", "rename"]

State = dict[str, torch.Tensor]


def read_state(path: Path) -> State:
    """The tensors of a weight file (safetensors, or a state dict that torch saved), by name."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, UnpicklingError, SafetensorError, EOFError, KeyError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path} cannot be read as weights ({said}).") from error
    for wrapper in ("state_dict", "model", "teacher"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ModelError(f"{path} holds no state dict: a mapping of names to tensors was expected.")
    return {name.removeprefix("module."): value for name, value in found.items()}


def load_checkpoint(net: nn.Module, facts: EncoderFacts, path: Path) -> None:
    """Fill the network from a file. Raises `ModelError` that says what does not fit."""
    state = rename(facts, read_state(path))
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    problems = []
    if missing := [name for name in wanted if name not in given]:
        problems.append(f"{len(missing)} tensors are missing, such as {missing[0]}")
    if extra := [name for name in given if name not in wanted]:
        problems.append(f"{len(extra)} are of no use, such as {extra[0]}")
    if other := [name for name in wanted if name in given and wanted[name] != given[name]]:
        problems.append(f"{other[0]} has the shape {given[other[0]]} where {wanted[other[0]]} was expected")
    if problems:
        unsure = "" if facts.checked else "; how it is built was not checked against its weights before"
        raise ModelError(
            f"{path} is no weight file of the image encoder {facts.name!r}: {'; '.join(problems)}{unsure}."
        )
    net.load_state_dict(state)


def rename(facts: EncoderFacts, state: State) -> State:
    """The state under the names that the encoder's network has."""
    if facts.library == "open_clip":
        if any(name.startswith("vision_model.") for name in state):
            return _from_transformers_clip(state)
        if any(name.startswith("visual.") for name in state):
            return {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
        return state
    if facts.library == "conch":
        kept = ("visual.trunk.", "visual.attn_pool_contrast.", "visual.ln_contrast.")
        return {name.removeprefix("visual."): value for name, value in state.items() if name.startswith(kept)}
    if facts.library == "ctranspath":
        return _from_old_swin(state)
    if any(name.startswith("embeddings.patch_embeddings.") for name in state):
        state = _from_transformers_dinov2(state)
    if "mask_token" in state or "register_tokens" in state:
        state = _from_dinov2(state)
    if facts.name.startswith("timm:"):
        classifiers = ("head.weight", "head.bias", "head.fc.", "fc.", "classifier.")
        state = {name: value for name, value in state.items() if not name.startswith(classifiers)}
    return state


def _from_dinov2(state: State) -> State:
    """DINOv2's names to timm's: the class token takes its position in, and the gated layers are named by order."""
    out = {name: value for name, value in state.items() if name not in ("mask_token", "register_tokens")}
    if "register_tokens" in state:
        out["reg_token"] = state["register_tokens"]
        out["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        out["pos_embed"] = state["pos_embed"][:, 1:]
    return {name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): v for name, v in out.items()}


_DINOV2_OF_TRANSFORMERS = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
)


def _from_transformers_dinov2(state: State) -> State:
    """transformers' names of DINOv2 to DINOv2's own; query, key and value become one matrix."""
    out: State = {}
    for name, value in state.items():
        query = re.match(r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$", name)
        if query is None:
            for pattern, to in _DINOV2_OF_TRANSFORMERS:
                name = re.sub(pattern, to, name)
            out[name] = value
        elif query[2] == "query":
            parts = [state.get(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
            out[f"blocks.{query[1]}.attn.qkv.{query[3]}"] = _joined(name, parts)
    return out


_CLIP_OF_TRANSFORMERS = (
    (r"^embeddings\.class_embedding$", "class_embedding"),
    (r"^embeddings\.patch_embedding\.", "conv1."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^pre_layrnorm\.", "ln_pre."),
    (r"^post_layernorm\.", "ln_post."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def _from_transformers_clip(state: State) -> State:
    """transformers' names of CLIP's image tower to open_clip's."""
    out: State = {}
    if "visual_projection.weight" in state:
        out["proj"] = state["visual_projection.weight"].T.contiguous()
    for full, value in state.items():
        if not full.startswith("vision_model.") or full.endswith("position_ids"):
            continue
        name = full.removeprefix("vision_model.")
        query = re.match(r"^encoder\.layers\.(\d+)\.self_attn\.(q|k|v)_proj\.(weight|bias)$", name)
        if query is None:
            for pattern, to in _CLIP_OF_TRANSFORMERS:
                name = re.sub(pattern, to, name)
            out[name] = value
        elif query[2] == "q":
            parts = [state.get(full.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
            out[f"transformer.resblocks.{query[1]}.attn.in_proj_{query[3]}"] = _joined(full, parts)
    return out


def _joined(name: str, parts: list[torch.Tensor | None]) -> torch.Tensor:
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        raise ModelError(f"The weight file holds {name} without its key or its value.")
    return torch.cat(whole)


def _from_old_swin(state: State) -> State:
    """timm 0.5's Swin, where a stage ends with its downsampling, to today's, where the next one begins with it."""
    out: State = {}
    for name, value in state.items():
        if name.startswith("head.") or name.endswith(("attn_mask", "relative_position_index")):
            continue
        out[re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)] = value
    return out
