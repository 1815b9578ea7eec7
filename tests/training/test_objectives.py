"""Objectives: by their printed formulas, and the same on many processes as on one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training import joined_batch
from tests.training.joined_batch import Case, Towers, cases, outcome, whole_batch
from torch.nn import functional as F  # noqa: N812

from histolake.platform.errors import UsageError
from histolake.training.objectives import Captioned, Contrastive, Smoothed, SpotNiche, backward, ignore_mask

SCALE = torch.tensor(3.0, dtype=torch.float64)


def vectors(rows: int = 5) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    found = {name: F.normalize(torch.randn(rows, 4, generator=draw).double(), dim=1) for name in joined_batch.NAMES}
    return {**found, "scale": SCALE}


def naive(x_BD: torch.Tensor, y_BD: torch.Tensor, *, printed: bool = False, strike: np.ndarray | None = None) -> float:
    """One direction, term by term."""
    x, y = x_BD.numpy(), y_BD.numpy()
    terms = []
    for i in range(len(x)):
        others = [j for j in range(len(y)) if j != i and (strike is None or not strike[i, j])]
        below = sum(math.exp(3.0 * x[i] @ y[j]) for j in ([*others] if printed else [i, *others]))
        terms.append(-math.log(math.exp(3.0 * x[i] @ y[i]) / below))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("printed", [False, True])
def test_contrastive_is_its_formula(printed: bool) -> None:
    found = vectors()
    x, y = found["image"], found["text"]
    both = (naive(x, y, printed=printed) + naive(y, x, printed=printed)) / 2
    losses = Contrastive(printed=printed)(found)
    assert float(losses["loss"]) == pytest.approx(both, rel=1e-12)
    assert float(losses["loss"]) == float(losses["loss_image_text"]) and losses["negatives"] == 4


def test_the_printed_form_has_no_lower_bound() -> None:
    same = {"image": torch.eye(4).double(), "text": torch.eye(4).double(), "scale": torch.tensor(50.0).double()}
    assert Contrastive(printed=True)(same)["loss"] < -40
    assert 0 <= Contrastive()(same)["loss"] < 1e-20


def test_spot_and_niche_are_weighed_as_the_paper_says() -> None:
    found = vectors()
    level = {
        name: (
            naive(found[f"{name}_image"], found[f"{name}_genes"])
            + naive(found[f"{name}_genes"], found[f"{name}_image"])
        )
        / 2
        for name in ("spot", "niche")
    }
    between = naive(found["spot"], found["niche"])
    losses = SpotNiche(spot=0.2, niche=0.5)(found)
    assert float(losses["loss"]) == pytest.approx(0.2 * level["spot"] + 0.5 * level["niche"] + 0.3 * between, rel=1e-12)
    assert float(losses["loss_spot_niche"]) == pytest.approx(between, rel=1e-12)
    assert set(SpotNiche(spot=0, niche=0)(found)) == {"loss", "loss_spot_niche", "negatives"}
    assert "loss_spot_niche" not in SpotNiche(spot=0.4, niche=0.6)(found)
    for wrong in ({"spot": -0.1}, {"spot": 0.7, "niche": 0.4}):
        with pytest.raises(UsageError, match="neither may be negative, nor both together more than 1"):
            SpotNiche(**wrong)


def test_smoothed_targets_are_those_of_bleep() -> None:
    """On its own rows, which are of the length that a LayerNorm leaves, at a temperature of 1.5."""
    found = vectors()
    rows = {name: value * 2 for name, value in found.items()}
    x, y = rows["image"].numpy(), rows["text"].numpy()
    alike = (x @ x.T + y @ y.T) / 2 * 1.5
    target = np.exp(alike) / np.exp(alike).sum(axis=1, keepdims=True)
    scores = y @ x.T / 1.5

    def log_softmax(values: np.ndarray) -> np.ndarray:
        return np.asarray(values - np.log(np.exp(values).sum(axis=1, keepdims=True)))

    of_text = -(target * log_softmax(scores)).sum(axis=1)
    of_image = -(target.T * log_softmax(scores.T)).sum(axis=1)
    asked = {**found, "scale": torch.tensor(4 / 1.5, dtype=torch.float64)}
    want = float((of_text + of_image).mean() / 2)
    assert float(Smoothed(squared_norm=4)(asked)["loss"]) == pytest.approx(want, rel=1e-12)


def test_the_caption_loss_is_open_clips() -> None:
    from histolake.training.torchvision_shim import import_torchvision

    import_torchvision()
    from open_clip.loss import CoCaLoss

    batch = whole_batch()
    with torch.no_grad():
        found = Towers()(batch)
    theirs = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)(
        found["image"], found["text"], found["caption_logits"][:, :-1], batch["sentence"][:, 1:], found["scale"], True
    )
    ours = Captioned(weight=2.0)(found, batch=batch)
    assert float(ours["loss_caption"]) * 2 == pytest.approx(float(theirs["caption_loss"]), rel=1e-12)
    assert float(ours["loss_image_text"]) == pytest.approx(float(theirs["contrastive_loss"]), rel=1e-12)
    assert float(ours["loss"]) == pytest.approx(sum(float(value) for value in theirs.values()), rel=1e-12)
    assert "loss_caption" not in Captioned(weight=0)(found, batch=batch)


def test_ignored_pairs_are_no_negatives_and_a_row_never_loses_its_own() -> None:
    found = vectors()
    strike = np.zeros((5, 5), dtype=bool)
    strike[0, 1] = strike[1, 0] = strike[2, 2] = strike[3, 4] = True
    want = (
        naive(found["image"], found["text"], strike=strike) + naive(found["text"], found["image"], strike=strike)
    ) / 2
    losses = Contrastive()(found, ignore_BN=torch.from_numpy(strike))
    assert float(losses["loss"]) == pytest.approx(want, rel=1e-12)
    assert float(losses["negatives"]) == pytest.approx((3 + 3 + 4 + 3 + 4) / 5)
    everything = torch.ones(5, 5, dtype=torch.bool)
    assert float(Contrastive()(found, ignore_BN=everything)["loss"]) == pytest.approx(0, abs=1e-12)
    assert float(Contrastive(printed=True)(found, ignore_BN=everything)["loss"]) == 0


@pytest.mark.parametrize("name", sorted(name for name in cases() if "lacking" in name))
def test_rows_that_lack_something_are_as_if_they_were_not_there(name: str) -> None:
    """Even where what stands in their place is no number."""
    case, batch = cases()[name], whole_batch()
    has = joined_batch.present(case)
    model, other = Towers(), Towers()
    broken = dict(model(batch))
    for key in has:
        shape = (-1,) + (1,) * (broken[key].ndim - 1)
        broken[key] = torch.where(has[key].view(shape), broken[key], torch.nan if key != "caption_logits" else 0.0)
    losses = case.objective(broken, present=has, ignore_BN=joined_batch.mask(case, batch), batch=batch)
    losses["loss"].backward()
    kept = {key: value[has["text"]] for key, value in batch.items()}
    if name.startswith("spot-niche"):  # each of its losses lacks other rows
        assert all(bool(torch.isfinite(value)) for value in losses.values())
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
        return
    want = case.objective(other(kept), ignore_BN=joined_batch.mask(case, kept), batch=kept)
    want["loss"].backward()
    for key, value in want.items():
        assert float(losses[key]) == pytest.approx(float(value), rel=1e-12), key
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-14)


def test_a_batch_of_which_no_row_counts_gives_no_loss_and_no_gradient() -> None:
    for objective in (Contrastive(), Contrastive(printed=True), Smoothed(), Captioned(weight=1.0)):
        model = Towers()
        nobody = dict.fromkeys(("image", "caption_logits"), torch.zeros(joined_batch.ROWS, dtype=torch.bool))
        losses = objective(model(whole_batch()), present=nobody, batch=whole_batch())
        losses["loss"].backward()
        assert float(losses["loss"]) == 0 and float(losses["negatives"]) == 0
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_mask_strikes_out_neighbours_doubles_and_kin() -> None:
    mask = ignore_mask(
        torch.tensor([10, 11, 12, 13, 10]),
        neighbours_BK=torch.tensor([[12, -1], [-1, -1], [-1, -1], [11, 99], [12, -1]]),
        slides_B=torch.tensor([0, 0, 1, 2, 0]),
        kin_S=torch.tensor([7, 7, -1]),
    )
    want = np.zeros((5, 5), dtype=bool)
    for a, b in ((0, 2), (4, 2), (3, 1), (0, 4), (0, 2), (1, 2), (4, 2)):
        want[a, b] = want[b, a] = True
    np.testing.assert_array_equal(mask.numpy(), want | np.eye(5, dtype=bool))


@pytest.fixture(scope="module", params=[2, 4])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, joined_batch.Batch]:
    """What two and four processes made of the joined batch."""
    folder: Path = tmp_path_factory.mktemp("processes")
    given = (request.param, str(folder / "meeting"), str(folder / "found.pt"))
    torch.multiprocessing.spawn(joined_batch.work, args=given, nprocs=request.param)
    found: dict[str, joined_batch.Batch] = torch.load(folder / "found.pt", weights_only=True)
    return found


def same(found: joined_batch.Batch, want: joined_batch.Batch) -> None:
    # A parameter that no loss uses has no gradient on one process, and a zero one under DistributedDataParallel.
    for name, value in want.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-9, atol=1e-15, msg=lambda said, name=name: f"{name}: {said}"
        )
    for name in set(found) - set(want):
        assert not found[name].any(), name


@pytest.mark.parametrize("name", sorted(cases()))
def test_many_processes_equal_one(shared: dict[str, joined_batch.Batch], name: str) -> None:
    same(shared[name], outcome(cases()[name]))


def test_a_gradient_cached_on_many_processes_is_that_of_one(shared: dict[str, joined_batch.Batch]) -> None:
    want = joined_batch.cached(0)
    for chunks in (0, 2):
        same(shared[f"cached in {chunks}"], want)


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_a_cached_gradient_is_the_direct_one(chunks: int) -> None:
    """With dropout: the direct way computes the same chunks one after the other, all graphs held."""
    case = Case(SpotNiche(), lacking=True, ignoring=True)
    batch = whole_batch()
    size = joined_batch.ROWS // chunks
    parts = [{name: value[n * size : (n + 1) * size] for name, value in batch.items()} for n in range(chunks)]
    direct = Towers(dropout=0.4, captions=False)
    torch.manual_seed(7)
    found = [direct(part) for part in parts]
    after = torch.rand(1)
    joined = {name: torch.cat([each[name] for each in found]) for name in joined_batch.NAMES}
    losses = case.objective(
        {**joined, "scale": found[0]["scale"]},
        present=joined_batch.present(case),
        ignore_BN=joined_batch.mask(case, batch),
    )
    losses["loss"].backward()
    model = Towers(dropout=0.4, captions=False)
    torch.manual_seed(7)
    told = backward(
        model, parts, case.objective, present=joined_batch.present(case), ignore_BN=joined_batch.mask(case, batch)
    )
    assert torch.rand(1) == after, "and the random state goes on as after one pass"
    assert float(told["loss"]) == pytest.approx(losses["loss"].item(), rel=1e-12)
    for mine, theirs in zip(model.parameters(), direct.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-15)


def test_captions_are_not_cached() -> None:
    with pytest.raises(UsageError, match="caption_logits cannot be cached"):
        backward(Towers(), [whole_batch()], Contrastive())


def test_scores_are_computed_in_full_inside_autocast() -> None:
    draw = torch.Generator().manual_seed(5)
    x, y = (F.normalize(torch.randn(64, 16, generator=draw), dim=1) for _ in range(2))
    found = {"image": x, "text": F.normalize(x + 0.3 * y, dim=1), "scale": torch.tensor(100.0)}
    for objective in (Contrastive(), Smoothed()):
        want = objective(found)["loss"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(objective(found)["loss"], want, rtol=1e-6, atol=0)


def test_running_statistics_are_counted_once_by_gradient_caching() -> None:
    class Normed(Towers):
        """Towers behind a BatchNorm."""

        def __init__(self) -> None:
            super().__init__(captions=False)
            self.norm = torch.nn.BatchNorm1d(joined_batch.WIDTH, dtype=torch.float64)

        def forward(self, batch: joined_batch.Batch) -> dict[str, torch.Tensor]:
            return super().forward({**batch, "image": self.norm(batch["image"])})

    model, batch = Normed(), whole_batch()
    chunks = [{name: value[first : first + 8] for name, value in batch.items()} for first in (0, 8)]
    backward(model, chunks, Contrastive())
    other = torch.nn.BatchNorm1d(joined_batch.WIDTH, dtype=torch.float64)
    for chunk in chunks:
        other(chunk["image"])
    torch.testing.assert_close(model.norm.running_mean, other.running_mean)
    assert int(model.norm.num_batches_tracked) == 2


def test_values_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="must be 0 or more"):
        Captioned(weight=-1.0)
    with pytest.raises(UsageError, match="neither may be negative"):
        SpotNiche(spot=float("nan"))
    with pytest.raises(UsageError, match=r"is \(5, 1\); it must be \(5, 5\)"):
        Contrastive()(vectors(), ignore_BN=torch.zeros(5, 1, dtype=torch.bool))
