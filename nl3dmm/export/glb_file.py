"""The container: binary glTF 2.0 from arrays and pictures."""

import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped
from numpy import ndarray

_TYPES = {(): "SCALAR", (2,): "VEC2", (3,): "VEC3", (4,): "VEC4"}
_COMPONENTS = {np.dtype(np.uint32): 5125, np.dtype(np.float32): 5126}
VERTEX_BUFFER, INDEX_BUFFER = 34962, 34963


@dataclass
class GlbFile:
    """Collects the one buffer and what refers to it; every ``add_`` returns an index into its glTF list."""

    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)
    buffer: bytearray = field(default_factory=bytearray)

    def add_view(self, content: bytes, target: int | None = None) -> int:
        """Bytes, aligned to four."""
        view = {"buffer": 0, "byteOffset": len(self.buffer), "byteLength": len(content)}
        self.views.append(view if target is None else view | {"target": target})
        self.buffer += content + bytes(-len(content) % 4)
        return len(self.views) - 1

    def add_array(self, values: Shaped[ndarray, "count *channels"], target: int, has_bounds: bool = False) -> int:
        """float32 or uint32; positions must come with their bounds."""
        accessor = self._accessor(values) | {"bufferView": self.add_view(values.tobytes(), target)}
        return self._append(accessor | (_bounds(values) if has_bounds else {}))

    def add_sparse(self, values: Float32[ndarray, "count 3"], has_bounds: bool = False) -> int:
        """Displacements of which most are zero: only the others are stored (glTF wants at least one)."""
        rows = np.flatnonzero(values.any(axis=1)).astype(np.uint32)
        rows = rows if len(rows) else np.zeros(1, np.uint32)
        indices = {"bufferView": self.add_view(rows.tobytes()), "componentType": _COMPONENTS[rows.dtype]}
        stored = {"bufferView": self.add_view(values[rows].tobytes())}
        accessor = self._accessor(values) | {"sparse": {"count": len(rows), "indices": indices, "values": stored}}
        return self._append(accessor | (_bounds(values) if has_bounds else {}))

    def _append(self, accessor: dict[str, Any]) -> int:
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def _accessor(self, values: Shaped[ndarray, "count *channels"]) -> dict[str, Any]:
        component, kind = _COMPONENTS[values.dtype], _TYPES[values.shape[1:]]
        return {"componentType": component, "count": len(values), "type": kind}

    def content(self, document: dict[str, Any]) -> bytes:
        """The file: header, JSON of the document with the lists collected here, buffer."""
        lists = {"bufferViews": self.views, "accessors": self.accessors, "buffers": [{"byteLength": len(self.buffer)}]}
        text = json.dumps(document | lists, separators=(",", ":"), allow_nan=False).encode()
        chunks = [(b"JSON", text + b" " * (-len(text) % 4)), (b"BIN\0", bytes(self.buffer))]
        body = b"".join(struct.pack("<I", len(content)) + kind + content for kind, content in chunks)
        return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def _bounds(values: Shaped[ndarray, "count *channels"]) -> dict[str, list[float]]:
    return {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
