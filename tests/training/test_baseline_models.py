"""The baselines: CLIP with a layer on each side, BLEEP, and heads on frozen vectors."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from histolake.platform.errors import ModelError
from histolake.training.models import build_encoder, load_model, save_model
from histolake.training.models.bleep import ProjectionHead
from histolake.training.models.heads import MlpHead, MlpHeadConfig, RidgeHead

GENES = 7
CONFIGS: dict[str, dict[str, Any]] = {
    "clip-fc": {"architecture": "clip-fc", "image_encoder": "timm:test_vit"},
    "bleep": {"architecture": "bleep", "image_encoder": "timm:test_resnet", "embed_dim": 24},
}


def built(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    common = {"gene_ids": list(range(GENES)), "image_px": 32, "image_weights": "random"}
    model = build_encoder({**CONFIGS[name], **common, **changes})
    model.load_frozen()
    return model


def batch_of(rows: int = 6) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "spot_image": torch.randint(0, 256, (rows, 32, 32, 3), generator=draw, dtype=torch.uint8),
        "profile": torch.rand(rows, GENES, generator=draw),
    }


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_both_sides_give_unit_rows_and_learn_to_tell_pairs_apart(name: str) -> None:
    model, batch = built(name), batch_of()
    assert [one.key for one in model.inputs] == ["spot_image", "profile"]
    assert model.vector_needs == {"image": ("spot_image",), "text": ("profile",)}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        out = model.train()(batch)
        scores_BB = out["scale"] * out["image"] @ out["text"].T
        loss = torch.nn.functional.cross_entropy(scores_BB, torch.arange(6))
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    idle = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert idle == []
    out = model.eval()(batch)
    for vector in ("image", "text"):
        assert out[vector].shape == (6, model.embed_dim)
        torch.testing.assert_close(out[vector].norm(dim=1), torch.ones(6))
    assert set(model({"profile": batch["profile"]})) == {"text", "scale"}
    torch.testing.assert_close(model.encode_images(batch["spot_image"]), out["image"])


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_tower_that_is_not_trained_stays_and_a_folder_gives_the_same_vectors(tmp_path: Path, name: str) -> None:
    model = built(name, train_image=False)
    before = {key: value.clone() for key, value in model.image.state_dict().items()}
    model.train()(batch_of())["image"].sum().backward()
    assert all(p.grad is None for p in model.image.parameters())
    assert not any(module.training for module in model.image.modules())
    for key, value in model.image.state_dict().items():
        torch.testing.assert_close(value, before[key], atol=0, rtol=0)
    for trained in (model, built(name)):
        config = {**CONFIGS[name], "gene_ids": list(range(GENES)), "image_px": 32, "train_image": trained is not model}
        loaded = load_model(save_model(tmp_path / str(trained is model), trained, {"config": config})).encoder
        ours, theirs = trained.eval()(batch_of()), loaded(batch_of())
        for vector in ("image", "text", "scale"):
            torch.testing.assert_close(theirs[vector], ours[vector], atol=0, rtol=0)


def test_the_packaged_encoder_serves_frozen_only() -> None:
    model = built("clip-fc", image_encoder="efficientnet-lite0", image_weights="", train_image=False)
    assert model.eval()(batch_of())["image"].shape == (6, 32)
    with pytest.raises(ModelError, match="only ever used frozen"):
        built("clip-fc", image_encoder="efficientnet-lite0", image_weights="")


def test_bleeps_scale_makes_cosines_the_published_products() -> None:
    model = built("bleep", temperature=0.5).eval()
    batch = batch_of()
    image_BP = model.image_head(model.image(batch["spot_image"]))
    text_BP = model.genes_head(batch["profile"])
    out = model(batch)
    published_BB = image_BP @ text_BP.T / 0.5
    torch.testing.assert_close(out["scale"] * out["image"] @ out["text"].T, published_BB, atol=2e-2, rtol=1e-3)
    head = ProjectionHead(5, 4, 0.3).double().eval()
    given_BW = torch.randn(3, 5, dtype=torch.float64)
    first = given_BW @ head.project.weight.T + head.project.bias
    bent = first * 0.5 * (1 + torch.erf(first / 2**0.5))
    whole = first + bent @ head.mix.weight.T + head.mix.bias
    expected = (whole - whole.mean(1, keepdim=True)) / (whole.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(head(given_BW), expected)


# Heads.


def pairs(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x_NW = draw.normal(size=(n, 12)) * draw.uniform(0.1, 5, 12) + draw.normal(size=12) * 50
    y_NG = x_NW @ draw.normal(size=(12, 3)) + draw.normal(size=(n, 3)) + 4
    return x_NW, y_NG


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1e4])
def test_ridge_is_scikit_learns_however_the_rows_arrive(alpha: float) -> None:
    from sklearn.linear_model import Ridge

    x_NW, y_NG = pairs()
    theirs = Ridge(alpha=alpha, solver="cholesky").fit(x_NW, y_NG)
    new_NW = pairs(20, seed=1)[0]
    for sizes in ([200], [1, 199], [7] * 28 + [4], [0, 100, 0, 100]):
        cuts = np.cumsum([0, *sizes])
        batches = [(x_NW[a:b], y_NG[a:b]) for a, b in pairwise(cuts)]
        ours = RidgeHead(alpha).fit_batches(batches)
        assert ours.n == 200 and ours.coefficient_WG is not None
        np.testing.assert_allclose(ours.coefficient_WG, theirs.coef_.T, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(ours.predict(new_NW), theirs.predict(new_NW), rtol=1e-8)


def test_ridge_keeps_its_digits_far_from_zero_and_can_go_on() -> None:
    from sklearn.linear_model import Ridge

    x_NW, y_NG = pairs()
    far_NW = x_NW + 1e6
    halves = RidgeHead(2.0).update(far_NW[:90], y_NG[:90]).solve()
    halves.update(far_NW[90:], y_NG[90:]).solve()
    theirs = Ridge(alpha=2.0, solver="cholesky").fit(x_NW, y_NG)
    np.testing.assert_allclose(halves.coefficient_WG, theirs.coef_.T, rtol=1e-6, atol=1e-8)
    scaled = RidgeHead(3.0, standardise=True).fit(np.c_[x_NW, np.ones(200)], y_NG)
    spread_W = x_NW.std(axis=0)
    theirs = Ridge(alpha=3.0, solver="cholesky").fit(x_NW / spread_W, y_NG)
    assert scaled.coefficient_WG is not None
    np.testing.assert_allclose(scaled.coefficient_WG[:-1], (theirs.coef_ / spread_W).T, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(scaled.coefficient_WG[-1], 0, atol=1e-9)  # what never varies weighs nothing


def test_a_network_head_learns_what_no_line_can_and_the_same_each_time() -> None:
    draw = np.random.default_rng(0)
    x_NW = draw.normal(size=(600, 4)).astype(np.float32) * 3 + 10
    y_NG = np.stack([np.abs(x_NW[:, 0] - 10), np.sin(x_NW[:, 1])], axis=1)
    config = MlpHeadConfig(hidden=64, epochs=60, batch=100, lr=1e-2, dropout=0.0)
    before = torch.random.get_rng_state()
    head = MlpHead(config).fit(x_NW, y_NG)
    assert torch.equal(torch.random.get_rng_state(), before)
    error = ((head.predict(x_NW) - y_NG) ** 2).mean()
    line = ((RidgeHead(1.0).fit(x_NW, y_NG).predict(x_NW) - y_NG) ** 2).mean()
    assert error < 0.2 * line
    np.testing.assert_array_equal(MlpHead(config).fit(x_NW, y_NG).predict(x_NW), head.predict(x_NW))
    assert head.predict(x_NW[:0]).shape == (0, 2)


def test_what_is_no_pair_is_named() -> None:
    x_NW, y_NG = pairs(10)
    for act, words in (
        (lambda: RidgeHead().fit(x_NW, y_NG[:9]), "are no pairs"),
        (lambda: RidgeHead().fit(x_NW * np.nan, y_NG), "no finite numbers"),
        (lambda: RidgeHead().solve(), "seen no pairs"),
        (lambda: RidgeHead().predict(x_NW), "not fitted"),
        (lambda: RidgeHead(-1.0), "alpha is -1.0"),
        (lambda: RidgeHead(0.0).fit(np.c_[x_NW, x_NW], y_NG), "raise alpha"),
        (lambda: RidgeHead().update(x_NW, y_NG).update(x_NW[:, :3], y_NG), "12 and 3"),
        (lambda: MlpHead().predict(x_NW), "not fitted"),
        (lambda: MlpHead().fit(x_NW[:0], y_NG[:0]), "given no pairs"),
    ):
        with pytest.raises(ModelError, match=words):
            act()
