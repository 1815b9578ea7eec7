"""What the tests of objectives share: a small model, a batch whose rows lack this and that, the cases to be compared on
one process and on many, and what each of many processes does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F  # noqa: N812

from histolake.training.objectives import Captioned, Contrastive, Objective, Smoothed, SpotNiche, backward, ignore_mask

ROWS, WIDTH, TOKENS, WORDS = 16, 6, 5, 11
NAMES = ("image", "text", "spot_image", "spot_genes", "niche_image", "niche_genes", "spot", "niche")
Batch = dict[str, torch.Tensor]


class Towers(nn.Module):
    """A vector for each name out of one input each, and captions; dropout where asked for."""

    def __init__(self, dropout: float = 0.0, *, captions: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.towers = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 4))
                for name in NAMES
            }
        )
        self.captions = nn.Linear(WIDTH, TOKENS * WORDS) if captions else None
        self.log_scale = nn.Parameter(torch.tensor(1.2))
        self.double()

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        vectors = {name: F.normalize(tower(batch[name]), dim=-1) for name, tower in self.towers.items()}
        vectors["scale"] = self.log_scale.exp()
        if self.captions is not None:
            vectors["caption_logits"] = self.captions(batch["image"]).view(-1, TOKENS, WORDS)
        return vectors


@dataclass(frozen=True)
class Case:
    """An objective, and which masks it is asked with."""

    objective: Objective
    lacking: bool = False  # rows that lack a vector: many of them on the first process, all on the last
    ignoring: bool = False


def cases() -> dict[str, Case]:
    """All that is compared."""
    objectives: dict[str, Objective] = {
        "contrastive": Contrastive(),
        "printed": Contrastive(printed=True),
        "captioned": Captioned(weight=0.7),
        "smoothed": Smoothed(),
        "spot-niche": SpotNiche(),
        "spot-niche without the fused": SpotNiche(spot=0.5, niche=0.5),
    }
    kinds = {"": {}, ", lacking": {"lacking": True}, ", ignoring": {"ignoring": True}}
    kinds[", lacking and ignoring"] = {"lacking": True, "ignoring": True}
    return {
        name + kind: Case(objective, **how) for name, objective in objectives.items() for kind, how in kinds.items()
    }


def whole_batch() -> Batch:
    """The joined batch: inputs, tokens with padding, ids, neighbours of uneven number, slides."""
    draw = torch.Generator().manual_seed(1)
    batch = {name: torch.randn(ROWS, WIDTH, generator=draw, dtype=torch.float64) for name in NAMES}
    batch["sentence"] = torch.randint(1, WORDS, (ROWS, TOKENS), generator=draw)
    batch["sentence"][::3, 3:] = 0
    batch["ids"] = torch.randperm(1000, generator=draw)[:ROWS]
    batch["ids"][9] = batch["ids"][2]  # the same pair twice
    batch["neighbours"] = batch["ids"][torch.randint(ROWS, (ROWS, 2), generator=draw)]
    batch["neighbours"][::4, 1] = -1
    batch["slides"] = torch.arange(ROWS) % 3
    return batch


def present(case: Case) -> dict[str, torch.Tensor]:
    """Which rows of the joined batch have which vectors."""
    if not case.lacking:
        return {}
    has = torch.arange(ROWS) % 5 != 1
    has[-ROWS // 4 :] = False  # with four processes, the last has none
    return dict.fromkeys(("text", "spot_genes", "niche", "caption_logits"), has)


def mask(case: Case, batch: Batch) -> torch.Tensor | None:
    """Of this process's rows."""
    if not case.ignoring:
        return None
    kin = torch.tensor([4, -1, 4])
    return ignore_mask(batch["ids"], neighbours_BK=batch["neighbours"], slides_B=batch["slides"], kin_S=kin)


def share(values: Mapping[str, torch.Tensor], rank: int, ranks: int) -> Batch:
    """This process's rows."""
    rows = ROWS // ranks
    return {name: value[rank * rows : (rank + 1) * rows] for name, value in values.items()}


def outcome(case: Case, rank: int = 0, ranks: int = 1, wrap: Callable[[nn.Module], nn.Module] = lambda m: m) -> Batch:
    """The parts of the loss, and the gradient of every parameter, joined over the processes."""
    model = wrap(Towers())
    batch = share(whole_batch(), rank, ranks)
    losses = case.objective(
        model(batch), present=share(present(case), rank, ranks), ignore_BN=mask(case, batch), batch=batch
    )
    losses["loss"].backward()
    return _joined({name: value.detach() for name, value in losses.items()}, ranks) | _gradients(model)


def cached(chunks: int, rank: int = 0, ranks: int = 1, wrap: Callable[[nn.Module], nn.Module] = lambda m: m) -> Batch:
    """The same by gradient caching; with no chunks, directly."""
    model = wrap(Towers(captions=False))
    case = Case(SpotNiche(), lacking=True, ignoring=True)
    batch = share(whole_batch(), rank, ranks)
    rows = {"present": share(present(case), rank, ranks), "ignore_BN": mask(case, batch)}
    if not chunks:
        losses = case.objective(model(batch), **rows)
        losses["loss"].backward()
    else:
        size = len(batch["ids"]) // chunks
        parts = [{name: value[n * size : (n + 1) * size] for name, value in batch.items()} for n in range(chunks)]
        losses = backward(model, parts, case.objective, **rows)
    return _joined({name: value.detach() for name, value in losses.items()}, ranks) | _gradients(model)


def _joined(losses: Batch, ranks: int) -> Batch:
    for value in losses.values():
        if ranks > 1:
            dist.all_reduce(value)
            value /= ranks
    return losses


def _gradients(model: nn.Module) -> Batch:
    inner = getattr(model, "module", model)
    return {name: value.grad for name, value in inner.named_parameters() if value.grad is not None}


def work(rank: int, ranks: int, meeting: str, out: str) -> None:
    """One process: all cases through real DistributedDataParallel; the first process writes what came out."""
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)

    def wrap(model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, find_unused_parameters=True)

    found = {name: outcome(case, rank, ranks, wrap) for name, case in cases().items()}
    for chunks in (0, 2):
        found[f"cached in {chunks}"] = cached(chunks, rank, ranks, wrap)
    if rank == 0:
        torch.save(found, Path(out))
    dist.destroy_process_group()
