"""The array code runs on a machine that has torch, open_clip and timm and nothing else of the platform's: from a bare
checkout, with everything distributed, stored or tracked out of reach. Nor is histolake installed there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MODULES = (
    "histolake.training.flops",
    "histolake.training.inputs",
    "histolake.training.metrics",
    "histolake.training.models",
    "histolake.training.models.coca",
    "histolake.training.models.st_align.model",
    "histolake.training.objectives",
    "histolake.training.precision",
    "histolake.training.schedules",
)
ABSENT = ("ray", "lance", "mlflow", "pyarrow", "deltalake", "pandas", "anndata", "scanpy", "pydantic", "typer", "boto3")
ABSENT += ("pydantic_settings", "botocore", "faiss", "fastapi", "openslide", "pyvips", "webdataset", "zarr")

CODE = """
import sys
from importlib import import_module, metadata
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.split(".")[0] in ABSENT else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.path[:0] = PATHS
known = metadata.version
def version(name):
    if name == "histolake":
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.version = version
for module in MODULES:
    import_module(module)
from histolake.training.flops import example_batch
from histolake.training.models.coca import build_coca
from histolake.training.models.coca_presets import COCA_PRESETS
from histolake.training.objectives import Contrastive, backward
model = build_coca({**COCA_PRESETS["tiny"], "image_layers": 1, "vocab_size": 60})
losses = backward(model, [example_batch(model.inputs, 2, "cpu", words=50)] * 2, Contrastive())
print(float(losses["loss"]))
"""


def test_array_code_needs_torch_and_open_clip_alone() -> None:
    paths = [str(ROOT / part) for part in ("platform", "training")]
    told = f"ABSENT = {ABSENT!r}\nMODULES = {MODULES!r}\nPATHS = {paths!r}\n"
    done = subprocess.run([sys.executable, "-c", told + CODE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
