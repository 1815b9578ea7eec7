"""A server of public cohorts for tests: real HTTP with ranges, which misbehaves where it is told to; and a small
section in the layout of Space Ranger to serve."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

UM_PER_PX = 2.0
ROWS, COLUMNS = 36, 52  # of the array; a spot in every other column


class PublicServer(ThreadingHTTPServer):
    """Serves a folder. `break_at[path]` closes the connection once after so many bytes of an answer; `busy[path]`
    answers 503 so many times; `slow_s` waits before each block."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.ranges = True
        self.tagged = True
        self.break_at: dict[str, list[int]] = {}
        self.busy: dict[str, int] = {}
        self.slow_s = 0.0
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.sent = 0  # bytes of bodies
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: PublicServer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the test's output."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            self._answer(body=True)
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def _answer(self, *, body: bool) -> None:
        wanted = self.headers.get("Range")
        path = self.path.lstrip("/")
        self.server.asked.append((self.command, path, wanted))
        file = self.server.root / path
        if self.server.busy.get(path, 0) > 0:
            self.server.busy[path] -= 1
            self.send_error(503)
            return
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if wanted and self.server.ranges and self.headers.get("If-Range", tag) == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(content) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.tagged:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            self._send(path, content[start:])

    def _send(self, path: str, content: bytes) -> None:
        breaks = self.server.break_at.get(path)
        until = breaks.pop(0) if breaks else len(content)
        for place in range(0, min(until, len(content)), 65536):
            block = content[place : min(place + 65536, until)]
            time.sleep(self.server.slow_s)
            self.wfile.write(block)
            with self.server.lock:
                self.server.sent += len(block)
        if until < len(content):
            self.close_connection = True


@contextmanager
def serving(root: Path) -> Iterator[PublicServer]:
    """The server, in a thread, for the length of the block."""
    server = PublicServer(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# -- what is served ------------------------------------------------------------------------------------------------


def write_set(root: Path, name: str, *, version: str = "1.1.0", image: str = "image.tif", seed: int = 0) -> Path:
    """One section as it lies on the server, `<version>/<name>/<name>_<file>`; its folder."""
    rng = np.random.default_rng(seed)
    folder = root / version / name
    (folder / "spatial").mkdir(parents=True)
    spots = [(row, column) for row in range(ROWS) for column in range(row % 2, COLUMNS, 2)]
    at_px = [((200 + row * 86.6025) / UM_PER_PX, (200 + column * 50.0) / UM_PER_PX) for row, column in spots]
    barcodes = [f"{''.join('ACGT'[(number >> 2 * k) & 3] for k in range(16))}-1" for number in range(len(spots))]
    under = [2 <= row < ROWS - 2 and 3 <= column < COLUMNS - 3 for row, column in spots]
    lines = [
        f"{barcode},{int(tissue)},{row},{column},{y:.0f},{x:.0f}"
        for barcode, tissue, (row, column), (y, x) in zip(barcodes, under, spots, at_px, strict=True)
    ]
    (folder / "spatial/tissue_positions_list.csv").write_text("\n".join(lines) + "\n")
    pixels = rng.integers(150, 235, (int((ROWS * 86.6 + 400) / UM_PER_PX), int((COLUMNS * 50 + 400) / UM_PER_PX), 3))
    picture = Image.fromarray(pixels.astype(np.uint8))
    picture.save(folder / f"{name}_{image}")
    hires = picture.resize((picture.width // 2, picture.height // 2))
    hires.save(folder / "spatial/tissue_hires_image.png")
    factors = {
        "spot_diameter_fullres": 65 / UM_PER_PX,
        "fiducial_diameter_fullres": 105 / UM_PER_PX,
        "tissue_hires_scalef": 0.5,
        "tissue_lowres_scalef": 0.15,
    }
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
    with tarfile.open(folder / f"{name}_spatial.tar.gz", "w:gz") as archive:
        archive.add(folder / "spatial", "spatial")
    shutil.rmtree(folder / "spatial")
    kept = [barcode for barcode, tissue in zip(barcodes, under, strict=True) if tissue]
    _write_matrix(folder / f"{name}_filtered_feature_bc_matrix.h5", kept, rng)
    return folder


def _write_matrix(file: Path, barcodes: list[str], rng: np.random.Generator) -> None:
    from histolake.platform.lake.genes import vocabulary

    table = vocabulary()
    protein = [place for place, symbol in enumerate(table["symbol"].to_pylist()) if symbol[:3] in ("COL", "KRT", "SLC")]
    genes = protein[:600]
    counts_GN = rng.poisson(2.0, (len(genes), len(barcodes)))
    columns = [np.flatnonzero(column) for column in counts_GN.T]
    with h5py.File(file, "w") as out:
        matrix = out.create_group("matrix")
        matrix["barcodes"] = np.array([b.encode() for b in barcodes])
        matrix["data"] = np.concatenate([counts_GN[c, n] for n, c in enumerate(columns)]).astype(np.int32)
        matrix["indices"] = np.concatenate(columns).astype(np.int64)
        matrix["indptr"] = np.concatenate([[0], np.cumsum([len(c) for c in columns])]).astype(np.int64)
        matrix["shape"] = np.array(counts_GN.shape, dtype=np.int32)
        features = matrix.create_group("features")
        features["id"] = np.array([table["ensembl_id"][g].as_py().encode() for g in genes])
        features["name"] = np.array([table["symbol"][g].as_py().encode() for g in genes])
        features["feature_type"] = np.array([b"Gene Expression"] * len(genes))
        features["genome"] = np.array([b"GRCh38"] * len(genes))
        features["_all_tag_keys"] = np.array([b"genome"])


def write_list(
    file: Path, root: Path, names: list[str], *, cohort: str | None = None, pinned: str | None = None
) -> Path:
    """A catalogue of the sections below `root`, with their true checksums; `pinned` is a file that gets none."""
    lines = [
        'format_version = 1\nsource = "made for a test"\nlicence = "CC BY 4.0"',
        'licence_url = "https://creativecommons.org/licenses/by/4.0/"\nhome = "http://localhost"',
    ]
    if cohort:
        lines.append(f'[[cohort]]\nname = "{cohort}"\ntitle = "Together"\nsections = {json.dumps(names)}')
    for name in names:
        folder = next(root.glob(f"*/{name}"))
        lines.append(f'[[section]]\nname = "{name}"\ntitle = "Section {name}"\nspace_ranger = "{folder.parent.name}"')
        lines.append(
            'species = "human"\norgan = "breast"\nstain = "H&E"\npage = "http://localhost/page"\n[section.files]'
        )
        for place in sorted(folder.iterdir()):
            short = place.name.removeprefix(f"{name}_")
            known = {"sha256": hashlib.sha256(place.read_bytes()).hexdigest(), "bytes": place.stat().st_size}
            facts = ", ".join(f"{key} = {json.dumps(value)}" for key, value in known.items())
            lines.append(f'"{short}" = {{ {"" if short == pinned else facts} }}')
    file.write_text("\n".join(lines) + "\n")
    return file
