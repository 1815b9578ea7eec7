"""H&E-like texture for a simulated section, band by band.

Two dyes are laid down per pixel, haematoxylin (nuclei) and eosin (everything else), and become colour by Beer-Lambert
with the patient's stain vectors. What differs between domains is what a pathologist sees: how many nuclei, how large,
how dark, round or drawn out along fibres; glands around a lumen; fat cells as rings; dust in necrosis.

Axes: H rows and W columns of pixels, C colours, D domains, M nuclei.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from histolake.ingestion.simulate.anatomy import DOMAINS, HEIGHT_UM, WIDTH_UM, Anatomy, Warp

__all__ = ["Stain", "make_stain", "render"]

BAND_PX = 400
COARSE_UM = 8.0  # grid on which domains, tissue and fibres are looked up
HALO_PX = 12  # how far a nucleus may reach into the next band
FIBRE_UM = 34.0
GLAND_UM = 118.0  # between glands
FAT_UM = 62.0  # between fat cells

# nuclei a square millimetre, long and short radius in um, spread of size, dye
NUCLEI = {
    "tumour": (5200, 4.9, 4.0, 0.20, 0.80),
    "gland": (800, 4.2, 2.4, 0.12, 0.75),
    "stroma": (1500, 6.6, 1.7, 0.18, 0.85),
    "adipose": (130, 4.0, 1.6, 0.12, 0.80),
    "immune": (9800, 2.9, 2.7, 0.08, 1.25),
    "necrosis": (1300, 1.7, 1.4, 0.35, 1.15),
}
EOSIN = {"tumour": 0.42, "gland": 0.40, "stroma": 0.52, "adipose": 0.03, "immune": 0.26, "necrosis": 0.72}
HAZE = {"tumour": 0.13, "gland": 0.05, "stroma": 0.02, "adipose": 0.0, "immune": 0.10, "necrosis": 0.04}  # haematoxylin


@dataclass(frozen=True, kw_only=True, eq=False)
class Stain:
    """How a laboratory's dyes absorb, per unit of dye, in red, green and blue; and the light of its scanner."""

    haematoxylin_C: np.ndarray
    eosin_C: np.ndarray
    light_C: np.ndarray


def make_stain(rng: np.random.Generator) -> Stain:
    """Draw one laboratory."""
    return Stain(
        haematoxylin_C=np.array([1.30, 1.42, 0.62]) * rng.uniform(0.85, 1.15) * rng.uniform(0.93, 1.07, 3),
        eosin_C=np.array([0.16, 1.05, 0.52]) * rng.uniform(0.8, 1.15) * rng.uniform(0.9, 1.1, 3),
        light_C=np.array([245.0, 243.0, 244.0]) + rng.uniform(-4, 4, 3),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Nuclei:
    """M nuclei: centre in px, radii in px, direction, dye."""

    xy_M2: np.ndarray
    long_M: np.ndarray
    short_M: np.ndarray
    turn_M: np.ndarray
    dye_M: np.ndarray

    def among(self, rows: tuple[float, float]) -> _Nuclei:
        """Those whose centre lies between two rows."""
        use = (self.xy_M2[:, 1] >= rows[0]) & (self.xy_M2[:, 1] < rows[1])
        return _Nuclei(
            xy_M2=self.xy_M2[use],
            long_M=self.long_M[use],
            short_M=self.short_M[use],
            turn_M=self.turn_M[use],
            dye_M=self.dye_M[use],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scene:
    """Everything that a band is painted from."""

    domains_DYX: np.ndarray  # on the coarse grid
    tissue_YX: np.ndarray
    stream_YX: np.ndarray
    cloud_YX: np.ndarray  # slow variation of thickness, deviation 1
    glands_um: np.ndarray
    gland_radius_um: np.ndarray
    fat: cKDTree
    nuclei: _Nuclei
    um_per_px: float


def render(rng: np.random.Generator, anatomy: Anatomy, warp: Warp, stain: Stain, um_per_px: float) -> np.ndarray:
    """The section's image, uint8 (H, W, C)."""
    scene = _make_scene(rng, anatomy, warp, um_per_px)
    width, height = round(WIDTH_UM / um_per_px), round(HEIGHT_UM / um_per_px)
    image = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, BAND_PX):
        rows = slice(top, min(top + BAND_PX, height))
        image[rows] = _paint(rng, scene, stain, rows, width)
    return image


def _make_scene(rng: np.random.Generator, anatomy: Anatomy, warp: Warp, um_per_px: float) -> _Scene:
    ny, nx = round(HEIGHT_UM / COARSE_UM) + 1, round(WIDTH_UM / COARSE_UM) + 1
    y, x = np.meshgrid(np.arange(ny) * COARSE_UM, np.arange(nx) * COARSE_UM, indexing="ij")
    at = warp(np.stack([x.ravel(), y.ravel()], axis=1))
    domains_DYX = anatomy.domains_at(at).T.reshape(len(DOMAINS), ny, nx)
    tissue_YX = anatomy.tissue_at(at).reshape(ny, nx)
    stream_YX = anatomy.stream_at(at).reshape(ny, nx)
    cloud_YX = gaussian_filter(rng.standard_normal((ny, nx)), 1.1)
    centres = _jittered(rng, GLAND_UM, 0.22)
    is_gland = (_look(domains_DYX[1], centres) > 0.55) & (_look(tissue_YX, centres) > 40)
    glands, radius = centres[is_gland], rng.uniform(36.0, 54.0, int(is_gland.sum()))
    scattered = _scattered_nuclei(rng, domains_DYX, tissue_YX, stream_YX, um_per_px)
    ringed = _gland_nuclei(rng, glands, radius, um_per_px)
    nuclei = _Nuclei(**{name: np.concatenate([getattr(scattered, name), getattr(ringed, name)]) for name in _FIELDS})
    return _Scene(
        domains_DYX=domains_DYX,
        tissue_YX=tissue_YX,
        stream_YX=stream_YX,
        cloud_YX=cloud_YX / cloud_YX.std(),
        glands_um=glands,
        gland_radius_um=radius,
        fat=cKDTree(_jittered(rng, FAT_UM, 0.3)),
        nuclei=nuclei,
        um_per_px=um_per_px,
    )


_FIELDS = ("xy_M2", "long_M", "short_M", "turn_M", "dye_M")


def _jittered(rng: np.random.Generator, step_um: float, jitter: float) -> np.ndarray:
    """Points of a hexagonal grid, each moved a little."""
    y, x = np.meshgrid(np.arange(0, HEIGHT_UM, step_um), np.arange(0, WIDTH_UM, step_um), indexing="ij")
    x = x + (np.arange(len(x)) % 2)[:, None] * step_um / 2
    return np.stack([x.ravel(), y.ravel()], axis=1) + rng.normal(0, jitter * step_um, (x.size, 2))


def _look(field_YX: np.ndarray, xy_um: np.ndarray) -> np.ndarray:
    """A coarse field at points, nearest grid node."""
    at = np.rint(xy_um / COARSE_UM).astype(int)
    return field_YX[at[:, 1].clip(0, field_YX.shape[0] - 1), at[:, 0].clip(0, field_YX.shape[1] - 1)]


def _scattered_nuclei(
    rng: np.random.Generator, domains_DYX: np.ndarray, tissue_YX: np.ndarray, stream_YX: np.ndarray, um_per_px: float
) -> _Nuclei:
    """Nuclei that fill their domain at its density, spindles along the fibres."""
    table = np.array([NUCLEI[name] for name in DOMAINS])
    step = 1e3 / np.sqrt(table[:, 0].max())
    xy = _jittered(rng, step, 0.32)
    xy = xy[_look(tissue_YX, xy) > 4.0]
    shares = np.stack([_look(field, xy) for field in domains_DYX], axis=1)
    kind = np.argmax(shares.cumsum(axis=1) > rng.random((len(xy), 1)), axis=1)
    here = rng.random(len(xy)) < table[kind, 0] / table[:, 0].max()
    xy, kind = xy[here], kind[here]
    dy, dx = np.gradient(stream_YX)
    along = np.arctan2(-_look(dx, xy), _look(dy, xy))  # the level line's direction
    loose = np.where(np.isin(kind, [2, 3]), 0.25, np.pi)
    size = rng.lognormal(0.0, table[kind, 3])
    return _Nuclei(
        xy_M2=xy / um_per_px,
        long_M=table[kind, 1] * size / um_per_px,
        short_M=table[kind, 2] * size / um_per_px,
        turn_M=along + rng.uniform(-1, 1, len(xy)) * loose,
        dye_M=table[kind, 4] * rng.uniform(0.7, 1.2, len(xy)),
    )


def _gland_nuclei(rng: np.random.Generator, glands: np.ndarray, radius: np.ndarray, um_per_px: float) -> _Nuclei:
    """A ring of nuclei around each lumen."""
    per = 26
    turn = (np.arange(per) / per * 2 * np.pi) + rng.normal(0, 0.06, (len(glands), per))
    ring = radius[:, None] * rng.uniform(0.74, 0.88, (len(glands), per))
    xy = glands[:, None] + np.stack([np.cos(turn), np.sin(turn)], axis=2) * ring[:, :, None]
    n = xy.shape[0] * per
    return _Nuclei(
        xy_M2=xy.reshape(n, 2) / um_per_px,
        long_M=np.full(n, 4.8) * rng.lognormal(0, 0.1, n) / um_per_px,
        short_M=np.full(n, 2.9) * rng.lognormal(0, 0.1, n) / um_per_px,
        turn_M=turn.ravel(),
        dye_M=0.95 * rng.uniform(0.8, 1.15, n),
    )


def _paint(rng: np.random.Generator, scene: _Scene, stain: Stain, rows: slice, width: int) -> np.ndarray:
    """Rows of the image."""
    height = rows.stop - rows.start

    def fine(field_YX: np.ndarray) -> np.ndarray:
        return _upsampled(field_YX, rows, width, scene.um_per_px)

    shares = [fine(field) for field in scene.domains_DYX]
    grain = rng.standard_normal((height, width)).astype(np.float32)
    rough = gaussian_filter(grain, 1.1) * 3.2
    cloud = fine(scene.cloud_YX)
    wave = np.sin(fine(scene.stream_YX) * (2 * np.pi / FIBRE_UM) + 1.2 * cloud)
    eosin = _mixed(EOSIN, shares)
    eosin = eosin * (1 + 0.10 * rough + 0.06 * cloud)
    eosin += shares[2] * (0.20 * wave + 0.08 * rough)
    eosin += shares[5] * 0.12 * rough
    dye = _mixed(HAZE, shares)
    _add_structures(scene, shares, eosin, dye, rows)
    tissue = np.clip((fine(scene.tissue_YX) + 9 * cloud) / 7.0, 0, 1)
    # Clefts open between the fibres.
    tissue *= 1 - np.clip((wave - 0.90) * 9, 0, 0.8) * shares[2] * (cloud > 0.1)
    eosin *= tissue
    dye *= tissue
    _stamp(scene.nuclei.among((rows.start - HALO_PX, rows.stop + HALO_PX)), dye, eosin, rows.start)
    depth_HWC = dye[..., None] * stain.haematoxylin_C.astype(np.float32)
    depth_HWC += np.maximum(eosin, 0)[..., None] * stain.eosin_C.astype(np.float32)
    colour = stain.light_C.astype(np.float32) * np.exp(-depth_HWC) + grain[..., None] * 1.5
    return np.clip(colour, 0, 255).astype(np.uint8)


def _mixed(table: dict[str, float], shares: list[np.ndarray]) -> np.ndarray:
    """What a dye amounts to where domains pass into each other."""
    total = np.zeros_like(shares[0])
    for name, share in zip(DOMAINS, shares, strict=True):
        total += np.float32(table[name]) * share
    return total


def _upsampled(field_YX: np.ndarray, rows: slice, width: int, um_per_px: float) -> np.ndarray:
    """A coarse field on some rows of pixels, linear between its nodes."""
    y, x = (np.arange(start, stop) * um_per_px / COARSE_UM for start, stop in ((rows.start, rows.stop), (0, width)))
    top, left = y.astype(int).clip(0, field_YX.shape[0] - 2), x.astype(int).clip(0, field_YX.shape[1] - 2)
    down, right = (y - top).astype(np.float32)[:, None], (x - left).astype(np.float32)
    field_YX = field_YX.astype(np.float32)
    lines = field_YX[top] * (1 - down) + field_YX[top + 1] * down
    return lines[:, left] * (1 - right) + lines[:, left + 1] * right


def _add_structures(scene: _Scene, shares: list[np.ndarray], eosin: np.ndarray, dye: np.ndarray, rows: slice) -> None:
    """Rings of fat cells, and glands with their lumen."""
    fatty = np.argwhere(shares[3][::2, ::2] > 0.25) * 2
    if len(fatty):
        at_um = (fatty[:, ::-1] + np.array([0, rows.start])) * scene.um_per_px
        near, _ = scene.fat.query(at_um, k=2)
        membrane = np.zeros(((shares[3].shape[0] + 1) // 2, (shares[3].shape[1] + 1) // 2), dtype=np.float32)
        membrane[fatty[:, 0] // 2, fatty[:, 1] // 2] = np.exp(-(((near[:, 1] - near[:, 0]) / 3.2) ** 2))
        full = membrane.repeat(2, axis=0).repeat(2, axis=1)[: eosin.shape[0], : eosin.shape[1]]
        eosin += 0.42 * gaussian_filter(full, 0.7) * shares[3]
    for (x_um, y_um), radius_um in zip(scene.glands_um, scene.gland_radius_um, strict=True):
        x, y, radius = x_um / scene.um_per_px, y_um / scene.um_per_px - rows.start, radius_um / scene.um_per_px
        top, bottom = max(int(y - radius), 0), min(int(y + radius) + 2, eosin.shape[0])
        left, right = max(int(x - radius), 0), min(int(x + radius) + 2, eosin.shape[1])
        if top >= bottom or left >= right:
            continue
        window = (slice(top, bottom), slice(left, right))
        part = np.hypot(*np.ogrid[top - y : bottom - y, left - x : right - x]) / radius
        wall = np.clip((1 - part) * radius / 2, 0, 1)  # soft over two pixels
        lumen = np.clip((0.48 - part) * radius / 2, 0, 1)
        eosin[window] *= (1 + 0.12 * wall) * (1 - 0.88 * lumen)
        dye[window] += 0.20 * wall
        dye[window] *= 1 - 0.9 * lumen


def _stamp(nuclei: _Nuclei, dye: np.ndarray, eosin: np.ndarray, top: int) -> None:
    """Lay every nucleus down as a soft ellipse; where two overlap the darker one shows."""
    reach = np.arange(-HALO_PX, HALO_PX + 1)
    dy, dx = np.meshgrid(reach, reach, indexing="ij")
    for start in range(0, len(nuclei.dye_M), 4000):
        part = slice(start, start + 4000)
        x, y = nuclei.xy_M2[part, 0], nuclei.xy_M2[part, 1] - top
        col, row = np.floor(x).astype(int), np.floor(y).astype(int)
        u = dx[None] - (x - col)[:, None, None]
        v = dy[None] - (y - row)[:, None, None]
        c, s = np.cos(nuclei.turn_M[part])[:, None, None], np.sin(nuclei.turn_M[part])[:, None, None]
        along = (u * c + v * s) / nuclei.long_M[part, None, None]
        across = (v * c - u * s) / nuclei.short_M[part, None, None]
        inside = along**2 + across**2
        # A rim a little darker than the middle, and a soft edge.
        cover = np.clip((1.25 - inside) * 3.0, 0, 1) * (0.82 + 0.25 * np.clip(inside, 0, 1))
        m, i, j = np.nonzero(cover > 0.02)
        r, k = row[m] + dy[i, j], col[m] + dx[i, j]
        keep = (r >= 0) & (r < dye.shape[0]) & (k >= 0) & (k < dye.shape[1])
        m, i, j, r, k = m[keep], i[keep], j[keep], r[keep], k[keep]
        np.maximum.at(dye, (r, k), (cover[m, i, j] * nuclei.dye_M[part][m]).astype(np.float32))
        eosin[r, k] *= 0.75
