"""Who embeds: actors on Ray, one a GPU where Ray sees any and one a CPU slot else, or this process alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from histolake.platform.errors import ModelError, UsageError
from histolake.training.embed_worker import Embedder, EmbedPlan, Work, Written

__all__ = ["Crew", "Pool", "in_process", "on_ray", "process_crew", "ray_crew"]

QUEUED = 2  # works an actor has before it, so that it never waits for the driver
MAX_DECODERS = 8  # threads that feed one GPU
GPU_BATCH, CPU_BATCH = 256, 32  # pairs a forward pass where nobody says

Pool = Callable[[Iterator[Work]], Iterator[Written]]


@dataclass(frozen=True, kw_only=True)
class Crew:
    """How many workers there are and what each has."""

    workers: int
    device: str  # cpu or cuda
    gpus: float = 0.0  # a worker
    threads: int = 1  # of torch a worker, on a CPU
    decoders: int = 1  # threads that decode pictures a worker

    def equip(self, plan: EmbedPlan, batch: int | None) -> EmbedPlan:
        """A plan for workers of this crew."""
        batch = batch or (GPU_BATCH if self.device == "cuda" else CPU_BATCH)
        return replace(plan, device=self.device, threads=self.threads, decoders=self.decoders, batch=batch)


def ray_crew(device: str, workers: int | None) -> Crew:
    """What Ray's machines allow. Ray must be running. Raises `UsageError` where a GPU is asked for and none is seen."""
    import ray

    held = ray.cluster_resources()
    gpus, slots = int(held.get("GPU", 0)), max(1, int(held.get("CPU", 1)))
    cores = os.cpu_count() or 1
    if len(ray.nodes()) == 1:
        slots = min(slots, cores)
    if device == "cuda" and not gpus:
        raise UsageError("Ray sees no GPU; use --device cpu, or a cluster that has GPUs (--address).")
    if gpus and device != "cpu":
        count = workers or gpus
        decoders = max(1, min(MAX_DECODERS, slots // count))
        return Crew(workers=count, device="cuda", gpus=min(1.0, gpus / count), decoders=decoders)
    count = min(workers or slots, slots)
    return Crew(workers=count, device="cpu", threads=max(1, slots // count))


def process_crew(device: str) -> Crew:
    """What this process has."""
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UsageError("torch sees no GPU here; use --device cpu.")
    cores = os.cpu_count() or 1
    if has_gpu and device != "cpu":
        return Crew(workers=1, device="cuda", decoders=max(1, min(MAX_DECODERS, cores)))
    return Crew(workers=1, device="cpu", threads=cores)


def in_process(plan: EmbedPlan) -> Pool:
    """Works one after the other, here. The model is loaded with the first."""

    def run(works: Iterator[Work]) -> Iterator[Written]:
        embedder: Embedder | None = None
        for work in works:
            embedder = embedder or Embedder(plan)
            yield embedder.write(work)

    return run


def on_ray(plan: EmbedPlan, crew: Crew) -> Pool:
    """Works through actors, as they finish. A work of an actor that died is done again by its successor."""

    def run(works: Iterator[Work]) -> Iterator[Written]:
        import ray

        kind: Any = ray.remote(Embedder)  # a decorated class, of which mypy knows too little
        kind = kind.options(
            num_cpus=crew.decoders if crew.gpus else 1, num_gpus=crew.gpus, max_restarts=2, max_task_retries=2
        )
        actors = [kind.remote(plan) for _ in range(crew.workers)]
        under_way: dict[Any, Any] = {}
        try:
            idle = actors * QUEUED
            while True:
                while idle and (work := next(works, None)) is not None:
                    actor = idle.pop(0)
                    under_way[actor.write.remote(work)] = actor
                if not under_way:
                    return
                (done, *_), _ = ray.wait(list(under_way), num_returns=1)
                idle.append(under_way.pop(done))
                try:
                    yield ray.get(done)
                except ray.exceptions.RayError as error:
                    told = str(error).strip().splitlines()
                    raise ModelError(f"A worker that embeds died: {told[-1] if told else error!r}") from error
        finally:
            for actor in actors:
                ray.kill(actor)

    return run
