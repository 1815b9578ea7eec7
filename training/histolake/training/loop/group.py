"""The group of workers: started, restarted from the last checkpoint when one dies, and what is left at the end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from histolake.platform.errors import HistolakeError, UsageError
from histolake.training.loop.plan import TrainPlan

__all__ = ["BEST_BY", "fit"]

BEST_BY = "held_out_recall_at_10pct"  # of the checkpoints, where the validation side is looked at


def fit(plan: TrainPlan, board: Any) -> Any:
    """Train; gives Ray Train's result, whose checkpoints hold the state. Ray must be running. Raises `UsageError` where
    its machines have too few slots: what does not fit would be waited for without end."""
    # A checkpoint counts only once the controller has asked for it; by default it asks every two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from histolake.platform.storage import Location
    from histolake.training.loop.worker import train_worker

    _require_slots(plan, ray.cluster_resources())
    filesystem, path = Location.parse(plan.storage).filesystem()
    use_gpu = ray.cluster_resources().get("GPU", 0) >= plan.workers
    judged = plan.recipe.validate_every and plan.validation_ids
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"plan": plan, "board": board},
        scaling_config=ScalingConfig(num_workers=plan.workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=plan.run_name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=plan.max_failures),
            # The last one is kept whatever its figure.
            checkpoint_config=CheckpointConfig(
                num_to_keep=plan.recipe.keep, checkpoint_score_attribute=BEST_BY if judged else None
            ),
        ),
    )
    try:
        return trainer.fit()
    except ray.train.WorkerGroupError as error:
        raise _own_error(error) from error


def _require_slots(plan: TrainPlan, there: Mapping[str, float]) -> None:
    """Each worker takes a slot, and each actor that decodes for it another."""
    recipe = plan.recipe
    wanted = {"CPU": plan.workers}
    said = f"{plan.workers} workers"
    if recipe.feed == "ray":
        actors = plan.workers * recipe.feed_workers
        said += f" and {actors} actors that decode"
        wanted["CPU"] += actors
        if recipe.feed_slot:
            wanted[recipe.feed_slot] = actors
    for name, count in wanted.items():
        if there.get(name, 0) < count:
            raise UsageError(
                f"{said} take {count} {name} slots and Ray's machines have {there.get(name, 0):g}; start fewer, or "
                "name a larger cluster (--address; on one machine HISTOLAKE_CLUSTER__CPUS says how many it offers)."
            )


def _own_error(error: Any) -> Exception:
    """The error of ours that a worker raised, if that is what ended the training; else Ray's."""
    for failure in error.worker_failures.values():
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, HistolakeError):
            return type(cause)(str(cause))
    return error
