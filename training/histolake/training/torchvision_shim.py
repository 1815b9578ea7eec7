"""Lets torchvision be imported beside a torch built without CUDA.

The wheel of torchvision on PyPI is built against CUDA. Beside a CPU build of torch its compiled operators cannot be
loaded, and `import torchvision` then fails with "operator torchvision::nms does not exist", because it registers a
fake kernel for an operator that nobody has defined. open_clip and timm import torchvision, so they fail too. None of
our code uses those operators (boxes), so declaring their signatures is enough.

`import_torchvision()` tries the real thing first and declares the operators only after that has failed: on a machine
with a matching build nothing is changed. Call it before open_clip or timm is imported, in every process.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

__all__ = ["import_torchvision"]

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: Any = None  # the declarations vanish with the object that made them


def import_torchvision() -> ModuleType:
    """torchvision, with its operators declared where its own library could not be loaded."""
    global _library
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _library is not None:
            raise
        import torch

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        _library = torch.library.Library("torchvision", "DEF")
        for signature in _OPERATORS:
            _library.define(signature)
        import torchvision
    return torchvision
