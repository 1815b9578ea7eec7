"""ST-Align: its parts against plain arithmetic, its vectors, what is trained and what is not, ablations, its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from histolake.platform.errors import ModelError
from histolake.training.inputs import Picture, Profile, Vector, inputs_from_card
from histolake.training.models import build_encoder, load_model, save_model
from histolake.training.models.files import load_encoder, model_digest
from histolake.training.models.frozen import ENCODERS, facts_of
from histolake.training.models.st_align import ABLATIONS, StAlign, StAlignConfig
from histolake.training.models.st_align.fusion import AttentionFusion
from histolake.training.models.st_align.niche_genes import GeneProjection, NicheGeneEncoder, ProfilePatches
from histolake.training.models.st_align.shared_batchnorm import SharedBatchNorm2d, share_batchnorm
from histolake.training.models.st_align.spot_image import SpotImageEncoder

GENES = 10
TINY: dict[str, Any] = {
    "gene_ids": tuple(range(100, 100 + GENES)),
    "embed_dim": 16,
    "fusion_tokens": 2,
    "spot_px": 12,
    "spot_depth": 10,
    "spot_width": 8,
    "niche_px": 32,
    "image_encoder": "efficientnet-lite0",
    "vector_width": 6,
    "niche_patch_genes": 4,
    "niche_width": 8,
    "niche_layers": 2,
    "niche_heads": 2,
}
NAMES = ("spot_image", "spot_genes", "niche_image", "niche_genes", "spot", "niche")


def tiny(**changes: Any) -> StAlign:
    torch.manual_seed(0)
    model = StAlign(StAlignConfig(**{**TINY, **changes}))
    model.load_frozen()
    return model


def batch_for(model: StAlign, rows: int = 5, seed: int = 1) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for one in model.inputs:
        if isinstance(one, Picture):
            made[one.key] = torch.randint(0, 256, (rows, one.px, one.px, 3), generator=draw, dtype=torch.uint8)
        else:
            width = one.width if isinstance(one, Vector) else len(one.gene_ids)  # type: ignore[union-attr]
            made[one.key] = torch.rand(rows, width, generator=draw)
    return made


def test_vectors_are_named_unit_rows_and_say_what_they_need() -> None:
    model = tiny().eval()
    batch = batch_for(model)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "spot_image": (5, 12, 12, 3),
        "niche_image": (5, 32, 32, 3),
        "vector": (5, 6),
        "niche_profile": (5, GENES),
    }
    out = model(batch)
    assert set(out) == {*NAMES, "scale"} and set(model.vector_needs) == set(NAMES)
    for name in NAMES:
        assert out[name].shape == (5, 16)
        torch.testing.assert_close(out[name].norm(dim=1), torch.ones(5))
    assert float(out["scale"]) == pytest.approx(1 / 0.07) and out["scale"].shape == ()
    assert model.vector_needs["spot"] == ("spot_image", "vector")
    assert model.vector_needs["niche"] == ("niche_image", "niche_profile")
    for name in NAMES:  # a batch with just what a vector needs gives that vector, and none that needs more
        part = model({key: batch[key] for key in model.vector_needs[name]})
        torch.testing.assert_close(part[name], out[name])
        assert {other for other in part if other != "scale"} == {
            other for other, needs in model.vector_needs.items() if set(needs) <= set(model.vector_needs[name])
        }
    torch.testing.assert_close(model.encode_images(batch["spot_image"]), out["spot_image"])


def test_gradients_reach_all_that_is_trained_and_nothing_that_is_not() -> None:
    model = tiny(learn_temperature=True, gene_encoder="projection").train()
    batch = batch_for(model)
    for module in model.bodies["spot_image"].modules():  # a branch whose last factor starts at zero passes no gradient
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.7)
    frozen_before = {name: value.clone() for name, value in model.image_encoder.state_dict().items()}
    out = model(batch)
    torch.manual_seed(2)
    loss = sum((out["scale"] * out[name] * torch.randn_like(out[name])).sum() for name in NAMES)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert trained == reached
    assert not any(name.startswith("image_encoder.") for name in trained) and "log_scale" in trained
    assert not any(module.training for module in model.image_encoder.modules())
    for name, value in model.image_encoder.state_dict().items():
        torch.testing.assert_close(value, frozen_before[name], atol=0, rtol=0)
    assert not [name for name, _ in model.bodies["spot_genes"].named_parameters()]


def test_rows_keep_to_themselves_in_evaluation() -> None:
    model = tiny().eval()
    batch = batch_for(model)
    out = model(batch)
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = model({key: value[order] for key, value in batch.items()})
    for name in NAMES:
        torch.testing.assert_close(turned[name], out[name][order], atol=1e-5, rtol=1e-4)
    lacking = {key: value.clone() for key, value in batch.items()}
    lacking["spot_image"][1] = 0
    lacking["vector"][2] = 0
    lacking["niche_profile"][3] = 0
    part = model(lacking)
    changed = {1: ("spot_image", "spot"), 2: ("spot_genes", "spot"), 3: ("niche_genes", "niche")}
    for row in range(5):
        for name in NAMES:
            if name not in changed.get(row, ()):
                torch.testing.assert_close(part[name][row], out[name][row], atol=1e-5, rtol=1e-4)
            else:
                assert bool(part[name][row].isfinite().all())
                assert not torch.allclose(part[name][row], out[name][row], atol=1e-3)


@pytest.mark.parametrize("scale", ["printed", "tokens"])
def test_the_fusion_is_the_papers_arithmetic(scale: str) -> None:
    torch.manual_seed(0)
    fusion = AttentionFusion(24, 3, scale=scale).double()
    image_BD, genes_BD = torch.randn(4, 24, dtype=torch.float64), torch.randn(4, 24, dtype=torch.float64)
    ours = fusion(image_BD, genes_BD).detach().numpy()
    divisor = np.sqrt(24 if scale == "printed" else 8)

    def matrix(layer: torch.nn.Linear) -> np.ndarray:
        return layer.weight.detach().numpy().T

    for row in range(4):
        image_SL, genes_SL = image_BD[row].numpy().reshape(3, 8), genes_BD[row].numpy().reshape(3, 8)
        halves = []
        for way, asking, other in ((fusion.image_asks, image_SL, genes_SL), (fusion.genes_ask, genes_SL, image_SL)):
            answer = np.zeros((3, 8))
            for i in range(3):
                scores = np.array(
                    [(asking[i] @ matrix(way.query)) @ (other[j] @ matrix(way.key)) / divisor for j in range(3)]
                )
                weights = np.exp(scores) / np.exp(scores).sum()
                answer[i] = sum(weights[j] * (other[j] @ matrix(way.value)) for j in range(3))
            halves.append(answer @ matrix(way.out))
        np.testing.assert_allclose(ours[row].reshape(3, 8), np.concatenate(halves, axis=1), rtol=1e-10, atol=1e-12)


def test_a_profile_is_cut_into_patches_and_every_gene_has_its_own_direction() -> None:
    torch.manual_seed(0)
    patches = ProfilePatches(10, patch_genes=4, width=3).double()
    profile_BG = torch.rand(2, 10, dtype=torch.float64)
    tokens_BPD = patches(profile_BG)
    assert tokens_BPD.shape == (2, 3, 3)  # 4 + 4 + 2 genes
    expected = patches.bias_PD.detach().expand(2, 3, 3).clone()
    for gene in range(10):
        expected[:, gene // 4] += profile_BG[:, gene, None] * patches.weight_PKD.detach()[gene // 4, gene % 4]
    torch.testing.assert_close(tokens_BPD, expected)
    with pytest.raises(ModelError, match="holds 9 genes; this model reads 10"):
        patches(profile_BG[:, :9])
    encoder = NicheGeneEncoder(10, patch_genes=4, width=8, layers=3, heads=2).eval()
    assert encoder(torch.rand(2, 10)).shape == (2, 8)
    first, second = (layer.linear1.weight for layer in encoder.layers.layers[:2])
    assert not torch.equal(first, second)
    swapped = torch.rand(1, 10)
    other = swapped[:, [4, 1, 2, 3, 0, 5, 6, 7, 8, 9]]  # two genes of two patches change places
    assert not torch.allclose(encoder(swapped), encoder(other), atol=1e-4)


def test_the_fixed_projection_is_the_same_everywhere_and_keeps_angles() -> None:
    torch.manual_seed(5)
    first = GeneProjection(400, 512)
    torch.manual_seed(6)
    torch.testing.assert_close(first.weight_GD, GeneProjection(400, 512).weight_GD, atol=0, rtol=0)
    profile_BG = torch.rand(6, 400)
    before = torch.nn.functional.cosine_similarity(profile_BG[:1], profile_BG[1:])
    after = torch.nn.functional.cosine_similarity(first(profile_BG)[:1], first(profile_BG)[1:])
    assert float((before - after).abs().max()) < 0.1


def test_the_stem_leaves_small_pictures_their_size() -> None:
    encoder = SpotImageEncoder(depth=50).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        stage = getattr(encoder.net, name)
        stage.register_forward_hook(lambda _, __, out, name=name: seen.update({name: tuple(out.shape[1:])}))
    with torch.no_grad():
        assert encoder(torch.zeros(1, 28, 28, 3, dtype=torch.uint8)).shape == (1, 2048)
    assert seen == {"layer1": (256, 28, 28), "layer2": (512, 14, 14), "layer3": (1024, 7, 7), "layer4": (2048, 4, 4)}
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(23.5e6, rel=2e-2)
    with pytest.raises(ModelError, match="one of 10, 18, 50"):
        SpotImageEncoder(depth=34)


@pytest.mark.parametrize(("device", "kind"), [("cuda:1", torch.nn.SyncBatchNorm), ("cpu", SharedBatchNorm2d)])
def test_batch_statistics_are_shared_where_the_switch_is_on(device: str, kind: type[torch.nn.Module]) -> None:
    def shared(model: StAlign) -> int:
        return sum(isinstance(module, kind) for module in model.modules())

    model, off = tiny(), tiny(sync_batchnorm=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.bodies["spot_image"].modules())
    off.synchronise_batchnorm(device)
    assert shared(off) == shared(model) == 0
    model.synchronise_batchnorm(device)
    assert shared(model) == plain > 0  # those of the trained network alone, not the frozen encoder's
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        name: tuple(value.shape) for name, value in before.items()
    }
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)


def spot_step(rows: slice, rank_share: float) -> dict[str, torch.Tensor]:
    """Gradients, running statistics and outputs of one training step of a spot encoder in float64."""
    torch.manual_seed(0)
    encoder = SpotImageEncoder(px=8, depth=10, base_width=4).double().train()
    for module in encoder.modules():  # a branch whose last factor starts at zero would hide what comes before it
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    share_batchnorm(encoder)
    image_BHWC = torch.randint(0, 256, (6, 8, 8, 3), dtype=torch.uint8)
    out = encoder(image_BHWC[rows])
    wanted = torch.randn(6, out.shape[1], dtype=torch.float64)
    ((out - wanted[rows]).square().sum() / rank_share).backward()
    found = {f"grad.{name}": p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    return found | dict(encoder.named_buffers()) | {"out": out.detach()}


def shared_worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(0, 4) if rank == 0 else slice(4, 6)  # unequal shares
    torch.save(spot_step(rows, 6 / 2), f"{folder}/rank{rank}.pt")  # of the mean over processes, half is each one's
    dist.destroy_process_group()


def test_shared_statistics_on_two_processes_are_those_of_the_joined_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(shared_worker, args=(str(tmp_path),), nprocs=2)
    joined = spot_step(slice(0, 6), 6)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(torch.cat([first["out"], second["out"]]), joined["out"], rtol=1e-10, atol=1e-11)
    for name, value in joined.items():
        if name.startswith("grad."):
            torch.testing.assert_close((first[name] + second[name]) / 2, value, rtol=1e-9, atol=1e-11)
        elif name != "out":
            torch.testing.assert_close(first[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_every_row_of_the_ablation_is_a_setting(name: str) -> None:
    row = ABLATIONS[name]
    model = tiny(**row.model)
    batch = batch_for(model)
    out = model.eval()(batch)
    level = {"spot_image", "spot_genes", "spot"}
    made = {
        "image-encoder": {"spot_image"},
        "gene-vectors": {"spot_genes"},
        "concatenate": level,
        "no-encoders": set(NAMES),
        "no-spot-niche": set(NAMES),
        "full": set(NAMES),
    }[name]
    assert set(out) == {*made, "scale"}
    assert row.vector in made and (row.image_vector in made or row.image_vector == "")
    assert (row.spot_weight, row.niche_weight, row.spot_niche_weight) == pytest.approx(
        (0.5, 0.5, 0) if name == "no-spot-niche" else (1 / 3, 1 / 3, 1 / 3)
    )
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert bool(trained) is row.trained
    assert any(key.startswith("fusions.") for key in trained) is (name in ("full", "no-encoders"))
    assert any(key.startswith("bodies.") for key in trained) is (name in ("full", "no-spot-niche"))
    for vector in made:
        torch.testing.assert_close(out[vector].norm(dim=1), torch.ones(5))
    if name == "image-encoder":
        raw = model.image_encoder(batch["spot_image"])
        torch.testing.assert_close(out["spot_image"], raw / raw.norm(dim=1, keepdim=True))
    if name == "concatenate":
        expected = torch.cat([out["spot_image"], out["spot_genes"]], dim=1) / 2**0.5
        torch.testing.assert_close(out["spot"], expected)
        torch.testing.assert_close(out["spot_genes"], torch.nn.functional.normalize(batch["vector"], dim=1))


def test_a_setting_that_cannot_be_says_what_to_change() -> None:
    for changes, words in (
        ({"gene_ids": ()}, "gene_ids is empty"),
        ({"fusion_tokens": 3}, "multiple of 6"),
        ({"fusion_scale": "both"}, "'printed'"),
        ({"niche_heads": 3}, "multiple of niche_heads"),
        ({"fusion": "sum"}, "one of attention, concatenate, none"),
        ({"modalities": "image"}, "set fusion to 'none'"),
        ({"project": False}, "set encoders to 'frozen'"),
        ({"image_encoder": "unni"}, "did you mean 'uni'"),
        ({"embed_dims": 3}, "cannot be used"),
    ):
        with pytest.raises(ModelError, match=words):
            build_encoder({"architecture": "st-align", **TINY, **changes})


def test_a_folder_gives_the_same_vectors_without_any_other_file(tmp_path: Path) -> None:
    model = tiny().train()
    model(batch_for(model, seed=7))  # moves the batch statistics
    config = {"architecture": "st-align", **TINY, "gene_ids": list(TINY["gene_ids"])}
    folder = save_model(tmp_path / "m", model, {"config": config, "image_px": 12})
    loaded = load_model(folder)
    assert isinstance(loaded.encoder, StAlign) and loaded.encoder.config == model.config
    assert inputs_from_card(loaded.card["inputs"]) == model.inputs
    batch = batch_for(model)
    ours, theirs = model.eval()(batch), loaded.encoder(batch)
    for name in (*NAMES, "scale"):
        torch.testing.assert_close(theirs[name], ours[name], atol=0, rtol=0)
    images = loaded.embed_pixels(batch["spot_image"].numpy())
    np.testing.assert_allclose(images, ours["spot_image"].detach().numpy(), atol=1e-6)
    with pytest.raises(ModelError, match="reads no gene sentences"):
        loaded.embed_sentences(["VIM"])
    assert isinstance(loaded.encoder.inputs[-1], Profile)


def test_gated_weights_stay_out_of_the_folder_and_must_be_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        ENCODERS,  # type: ignore[arg-type]  # the table is a plain dict
        "owned",
        replace(
            facts_of("timm:test_vit"),
            name="owned",
            gated=True,
            px=32,
            source="its owner",
            arguments={"num_classes": 0, "img_size": 32},
        ),
    )
    import timm

    def write(seed: int, path: Path) -> Path:
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_vit", num_classes=0, img_size=32).state_dict(), path)
        return path

    file, other = write(0, tmp_path / "a.bin"), write(1, tmp_path / "b.bin")
    config = {**TINY, "image_encoder": "owned", "image_weights": str(file)}
    torch.manual_seed(0)
    model = StAlign(StAlignConfig(**config))
    card = {"config": {"architecture": "st-align", **config, "gene_ids": list(config["gene_ids"])}}
    with pytest.raises(ModelError, match="has no weights cannot be saved"):
        save_model(tmp_path / "none", model, card)
    model.load_frozen()
    batch = batch_for(model)
    ours = model.eval()(batch)
    folder = save_model(tmp_path / "m", model, card)
    from safetensors.torch import load_file

    assert not any(name.startswith("image_encoder.") for name in load_file(folder / "weights.safetensors"))
    encoder, read = load_encoder(folder, files={"image_weights": str(file)})
    assert str(tmp_path) not in (folder / "model.json").read_text()
    assert read["withheld"]["image_weights"]["encoder"] == "owned"
    torch.testing.assert_close(encoder.eval()(batch)["niche"], ours["niche"])
    assert len(model_digest(folder)) == 64
    with pytest.raises(ModelError, match="another weight file of 'owned'"):
        load_encoder(folder, files={"image_weights": str(other)})
    with pytest.raises(ModelError, match="get them yourself from its owner"):
        load_encoder(folder)
    (tmp_path / "store").mkdir()
    file.rename(tmp_path / "store" / "owned.bin")
    monkeypatch.setenv("HISTOLAKE_ENCODERS__FOLDER", str(tmp_path / "store"))
    torch.testing.assert_close(load_encoder(folder)[0].eval()(batch)["niche"], ours["niche"])
