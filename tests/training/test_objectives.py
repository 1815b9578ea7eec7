"""The contrastive loss against its printed form, and on two processes against one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from histolake.training.objectives import info_nce, info_nce_distributed

RANKS, LOCAL, WIDTH = 2, 5, 7


def towers(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs of both towers for the joined batch, two linear towers, and a log scale, float64."""
    torch.manual_seed(seed)
    images, texts = (torch.randn(RANKS * LOCAL, 9, dtype=torch.float64) for _ in range(2))
    weights = [torch.randn(9, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    return images, texts, weights[0], weights[1], torch.tensor(1.3, dtype=torch.float64, requires_grad=True)


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def neighbours() -> torch.Tensor:
    index = torch.arange(RANKS * LOCAL)
    return (index[:, None] - index[None, :]).abs() == 1


def joined(ignore: bool) -> list[torch.Tensor]:
    images, texts, w_image, w_text, log_scale = towers()
    mask = neighbours() if ignore else None
    loss = info_nce(unit(images @ w_image), unit(texts @ w_text), log_scale.exp(), ignore_BB=mask)
    return [loss.detach(), *torch.autograd.grad(loss, [w_image, w_text, log_scale])]


def one_rank(rank: int, folder: str, ignore: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    images, texts, w_image, w_text, log_scale = towers()
    own = slice(rank * LOCAL, (rank + 1) * LOCAL)
    mask = neighbours()[own] if ignore else None
    loss = info_nce_distributed(unit(images[own] @ w_image), unit(texts[own] @ w_text), log_scale.exp(), ignore_BN=mask)
    result = [loss.detach(), *torch.autograd.grad(loss, [w_image, w_text, log_scale])]
    for tensor in result:  # what DistributedDataParallel does to gradients
        dist.all_reduce(tensor)
        tensor /= RANKS
    if rank == 0:
        torch.save(result, Path(folder) / "result.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("ignore", [False, True])
def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path: Path, ignore: bool) -> None:
    mp.spawn(one_rank, args=(str(tmp_path), ignore), nprocs=RANKS)
    for shared, alone in zip(torch.load(tmp_path / "result.pt"), joined(ignore), strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-9, atol=1e-12)


def test_the_loss_is_half_of_equation_1() -> None:
    images, texts, w_image, w_text, log_scale = (tensor.detach() for tensor in towers())
    x, y, scale = unit(images @ w_image), unit(texts @ w_text), log_scale.exp()
    n = len(x)
    printed = 0.0
    for i in range(n):
        printed -= torch.log(torch.exp(scale * x[i] @ y[i]) / sum(torch.exp(scale * x[i] @ y[j]) for j in range(n))) / n
        printed -= torch.log(torch.exp(scale * y[i] @ x[i]) / sum(torch.exp(scale * y[i] @ x[j]) for j in range(n))) / n
    torch.testing.assert_close(info_nce(x, y, scale), printed / 2, rtol=1e-12, atol=0)


def test_an_ignored_candidate_has_no_weight() -> None:
    images, texts, w_image, w_text, log_scale = (tensor.detach() for tensor in towers())
    x, y = unit(images @ w_image)[:3], unit(texts @ w_text)[:3]
    every_other = ~torch.eye(3, dtype=torch.bool)
    assert info_nce(x, y, log_scale.exp(), ignore_BB=every_other) == pytest.approx(0.0, abs=1e-12)
    assert info_nce(x, y, log_scale.exp(), ignore_BB=torch.ones(3, 3, dtype=torch.bool)) == pytest.approx(
        0.0, abs=1e-12
    )
