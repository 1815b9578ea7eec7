"""Zarr groups and arrays, of formats 2 and 3, on disk and in an object store: attributes, and arrays read with care.

Blosc trusts the length that a packed chunk states of itself: a chunk that was cut off comes out as whatever lies behind
it in memory, without an error. So chunks of arrays that are packed with it are measured when they are fetched.
"""

from __future__ import annotations

import json
from typing import Any

from histolake.platform.storage import Location

__all__ = ["DAMAGE", "array_shape", "group_attributes", "open_array", "open_group"]

# What zarr, its codecs and its stores raise on chunks and metadata that are not what they should be.
DAMAGE = (ValueError, RuntimeError, OSError, KeyError, TypeError)

_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_BLOSC_HEADER_BYTES = 16


def group_attributes(location: Location) -> dict[str, Any] | None:
    """The attributes of a zarr group; None where there is no group, or its metadata cannot be read."""
    for name in ("zarr.json", ".zattrs"):
        try:
            values = json.loads(location.join(name).read_bytes())
        except (OSError, ValueError):
            continue
        values = values.get("attributes", {}) if name == "zarr.json" and isinstance(values, dict) else values
        return values if isinstance(values, dict) else None
    return None


def array_shape(location: Location) -> tuple[tuple[int, ...], str] | None:
    """Shape and dtype ("uint8") of a zarr array, from its metadata alone; None where it cannot be read."""
    for name, kind in (("zarr.json", "data_type"), (".zarray", "dtype")):
        try:
            values = json.loads(location.join(name).read_bytes())
            shape = tuple(int(n) for n in values["shape"])
            told = values[kind]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return shape, {"|u1": "uint8", "<u1": "uint8"}.get(told, str(told))
    return None


def open_array(location: Location, path: str) -> Any:
    """A zarr array below a location, to read from. Raises one of `DAMAGE` where there is none."""
    import zarr

    return zarr.open_array(_measured(location.zarr_store()), path=path, mode="r")


def open_group(location: Location) -> Any:
    """A zarr group, to read from. Raises one of `DAMAGE` where there is none."""
    import zarr

    # Consolidated metadata may be older than the store, and would pass by what is measured.
    return zarr.open_group(_measured(location.zarr_store()), mode="r", use_consolidated=False)


def _measured(store: Any) -> Any:
    """The store, raising `ValueError` on chunks that are shorter than Blosc wrote them."""
    from zarr.storage import WrapperStore

    class Measured(WrapperStore):
        def __init__(self, inner: Any) -> None:
            super().__init__(inner)
            self._packed: dict[str, bool] = {}  # path of an array -> whether its chunks are Blosc's

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            found = await super().get(key, prototype, byte_range)
            if found is None or byte_range is not None:
                return found
            folder, _, name = key.rpartition("/")
            if name in ("zarr.json", ".zarray"):
                self._packed[folder] = _is_blosc(found.to_bytes())
            elif name not in _METADATA and any(
                packed and (not array or key.startswith(f"{array}/")) for array, packed in self._packed.items()
            ):
                _check_length(key, found)
            return found

    return Measured(store)


def _is_blosc(metadata: bytes) -> bool:
    try:
        values = json.loads(metadata)
    except ValueError:
        return False  # zarr itself tells that it cannot be read
    if not isinstance(values, dict):
        return False
    codecs = values.get("codecs") or []
    return any(isinstance(codec, dict) and codec.get("name") == "blosc" for codec in codecs) or (
        (values.get("compressor") or {}).get("id") == "blosc"
    )


def _check_length(key: str, chunk: Any) -> None:
    head = chunk[:_BLOSC_HEADER_BYTES].to_bytes()
    whole = int.from_bytes(head[12:16], "little") if len(head) == _BLOSC_HEADER_BYTES else _BLOSC_HEADER_BYTES
    if len(chunk) < whole:
        raise ValueError(f"chunk {key} has {len(chunk)} of {whole} bytes")
