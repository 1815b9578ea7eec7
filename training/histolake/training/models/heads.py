"""Expression from a frozen encoder's vectors: a ridge head in closed form, or a small network.

The baseline of every table: encode the pictures once, fit a head, predict. `RidgeHead` keeps sums only (W x W and
W x G numbers), so its memory does not grow with the pairs, and what order or batches they come in does not matter
beyond rounding. `MlpHead` passes over the pairs several times.

Axes: N pairs (B of a batch), W width of a vector, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from histolake.platform.errors import ModelError

__all__ = ["MlpHead", "MlpHeadConfig", "RidgeHead"]

Batches = Iterable[tuple[np.ndarray, np.ndarray]]


class RidgeHead:
    """Linear least squares with a penalty: min |Y - X w - b|^2 + alpha |w|^2, the intercept b not penalised.

    The normal equations in float64, from sums about the running means (Chan, Golub and LeVeque 1983): sums about zero
    would lose the digits of features that vary little about a large mean. `standardise` divides each feature by its
    deviation first, so that one `alpha` serves encoders of any spread.
    """

    def __init__(self, alpha: float = 1.0, *, standardise: bool = False) -> None:
        if not alpha >= 0:
            raise ModelError(f"alpha is {alpha}; it must be at least 0.")
        self.alpha = alpha
        self.standardise = standardise
        self.n = 0  # pairs seen
        self.coefficient_WG: np.ndarray | None = None
        self.intercept_G: np.ndarray | None = None

    def update(self, features_BW: np.ndarray, targets_BG: np.ndarray) -> RidgeHead:
        """Add some pairs."""
        x_BW, y_BG = _pair_of_matrices(features_BW, targets_BG)
        if not len(x_BW):
            return self
        mean_W, mean_G = x_BW.mean(axis=0), y_BG.mean(axis=0)
        x_BW, y_BG = x_BW - mean_W, y_BG - mean_G
        if self.n == 0:
            self._mean_W, self._mean_G = np.zeros_like(mean_W), np.zeros_like(mean_G)
            self._xx_WW = np.zeros((len(mean_W), len(mean_W)))
            self._xy_WG = np.zeros((len(mean_W), len(mean_G)))
        elif (len(mean_W), len(mean_G)) != self._xy_WG.shape:
            raise ModelError(
                f"A batch has {len(mean_W)} features and {len(mean_G)} genes; the ones before it had "
                f"{self._xy_WG.shape[0]} and {self._xy_WG.shape[1]}."
            )
        total = self.n + len(x_BW)
        step_W, step_G = mean_W - self._mean_W, mean_G - self._mean_G
        weight = self.n * len(x_BW) / total
        self._xx_WW += x_BW.T @ x_BW + weight * np.outer(step_W, step_W)
        self._xy_WG += x_BW.T @ y_BG + weight * np.outer(step_W, step_G)
        self._mean_W = self._mean_W + step_W * (len(x_BW) / total)
        self._mean_G = self._mean_G + step_G * (len(x_BW) / total)
        self.n = total
        self.coefficient_WG = None
        return self

    def solve(self) -> RidgeHead:
        """Find the weights from what was seen; more may be added afterwards, and solved again."""
        from scipy.linalg import LinAlgError, solve

        if self.n == 0:
            raise ModelError("A ridge head has seen no pairs; update it with some before it is solved.")
        spread_W = np.ones(len(self._mean_W))
        if self.standardise:
            spread_W = np.sqrt(np.diagonal(self._xx_WW) / self.n)
            spread_W[spread_W == 0] = 1.0
        left_WW = self._xx_WW / np.outer(spread_W, spread_W)
        left_WW[np.diag_indices_from(left_WW)] += self.alpha
        try:
            weight_WG = solve(left_WW, self._xy_WG / spread_W[:, None], assume_a="pos")
        except LinAlgError as error:
            raise ModelError(
                f"{self.n} pairs do not determine {len(left_WW)} weights a gene at alpha {self.alpha}; raise alpha."
            ) from error
        self.coefficient_WG = weight_WG / spread_W[:, None]
        self.intercept_G = self._mean_G - self._mean_W @ self.coefficient_WG
        return self

    def fit(self, features_NW: np.ndarray, targets_NG: np.ndarray) -> RidgeHead:
        """Start over with these pairs alone."""
        return self.fit_batches([(features_NW, targets_NG)])

    def fit_batches(self, batches: Batches) -> RidgeHead:
        """Start over with the pairs of these batches, which are read once."""
        self.n = 0
        for features_BW, targets_BG in batches:
            self.update(features_BW, targets_BG)
        return self.solve()

    def predict(self, features_NW: np.ndarray) -> np.ndarray:
        """Expression, float64 (N, G)."""
        if self.coefficient_WG is None or self.intercept_G is None:
            raise ModelError("A ridge head that was not fitted cannot predict; fit it first.")
        return np.asarray(features_NW, dtype=np.float64) @ self.coefficient_WG + self.intercept_G


@dataclass(frozen=True, kw_only=True)
class MlpHeadConfig:
    """How the small network is built and trained."""

    hidden: int = 256  # numbers between the two layers
    dropout: float = 0.1  # share
    epochs: int = 20  # passes over the pairs
    batch: int = 256  # pairs a step, where whole arrays are given
    lr: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0


class MlpHead:
    """Linear, GELU, dropout, linear, on standardised features, by AdamW on the mean squared error."""

    def __init__(self, config: MlpHeadConfig | None = None, *, device: str = "cpu") -> None:
        self.config = config or MlpHeadConfig()
        self.device = device
        self.net: nn.Module | None = None

    def fit(self, features_NW: np.ndarray, targets_NG: np.ndarray) -> MlpHead:
        """Train on whole arrays, in an order drawn anew for each pass."""
        x_NW, y_NG = _pair_of_matrices(features_NW, targets_NG, np.float32)

        def batches(epoch: int) -> Batches:
            order_N = np.random.default_rng([self.config.seed, epoch + 1]).permutation(len(x_NW))
            for start in range(0, len(order_N), self.config.batch):
                rows_B = order_N[start : start + self.config.batch]
                yield x_NW[rows_B], y_NG[rows_B]

        return self.fit_batches(batches)

    def fit_batches(self, batches: Callable[[int], Batches]) -> MlpHead:
        """Train on what `batches(epoch)` gives for each pass; pass -1, before the first, measures the features."""
        config = self.config
        mean_W, spread_W, mean_G = _moments(batches(-1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            last = nn.Linear(config.hidden, len(mean_G))
            with torch.no_grad():
                last.bias.copy_(torch.from_numpy(mean_G))  # starts from the mean of every gene
            first = nn.Linear(len(mean_W), config.hidden)
            net = nn.Sequential(first, nn.GELU(), nn.Dropout(config.dropout), last)
            net.to(self.device).train()
            self._mean_W, self._spread_W = (torch.from_numpy(one).to(self.device) for one in (mean_W, spread_W))
            optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
            for epoch in range(config.epochs):
                for features_BW, targets_BG in batches(epoch):
                    loss = nn.functional.mse_loss(net(self._standard(features_BW)), self._tensor(targets_BG))
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
        self.net = net.eval()
        return self

    def predict(self, features_NW: np.ndarray) -> np.ndarray:
        """Expression, float32 (N, G)."""
        if self.net is None:
            raise ModelError("A network head that was not fitted cannot predict; fit it first.")
        with torch.inference_mode():
            parts = [
                self.net(self._standard(features_NW[start : start + self.config.batch])).cpu().numpy()
                for start in range(0, max(len(features_NW), 1), self.config.batch)
            ]
        return np.concatenate(parts)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.device)

    def _standard(self, features_BW: np.ndarray) -> torch.Tensor:
        return (self._tensor(features_BW) - self._mean_W) / self._spread_W


def _pair_of_matrices(
    features: np.ndarray, targets: np.ndarray, dtype: type[np.floating] = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(features, dtype=dtype), np.asarray(targets, dtype=dtype)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ModelError(
            f"Features of the shape {x.shape} and targets of the shape {y.shape} are no pairs; both must be matrices "
            "with a row for each pair."
        )
    for name, values in (("features", x), ("targets", y)):
        if not np.isfinite(values).all():
            raise ModelError(f"The {name} hold values that are no finite numbers; leave those pairs out.")
    return x, y


def _moments(batches: Batches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and deviation of the features, and mean of the targets, float32."""
    n, mean_W, square_W, mean_G = 0, np.zeros(0), np.zeros(0), np.zeros(0)
    for features_BW, targets_BG in batches:
        x_BW, y_BG = _pair_of_matrices(features_BW, targets_BG)
        if not len(x_BW):
            continue
        if n == 0:
            mean_W, square_W, mean_G = np.zeros(x_BW.shape[1]), np.zeros(x_BW.shape[1]), np.zeros(y_BG.shape[1])
        step_W = x_BW.mean(axis=0) - mean_W
        total = n + len(x_BW)
        square_W += ((x_BW - x_BW.mean(axis=0)) ** 2).sum(axis=0) + step_W**2 * (n * len(x_BW) / total)
        mean_W += step_W * (len(x_BW) / total)
        mean_G += (y_BG.mean(axis=0) - mean_G) * (len(x_BW) / total)
        n = total
    if n == 0:
        raise ModelError("A network head was given no pairs; give it some.")
    spread_W = np.sqrt(square_W / n)
    spread_W[spread_W == 0] = 1.0
    return mean_W.astype(np.float32), spread_W.astype(np.float32), mean_G.astype(np.float32)
