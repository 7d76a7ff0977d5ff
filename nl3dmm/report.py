"""One HTML page for the results of many photos: numbers, pictures, curves and meshes that turn, all inside the file."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from nl3dmm.errors import ShapeError
from nl3dmm.geometry.lighting import Encoding
from nl3dmm.machine import package_version
from nl3dmm.outputs import atomic_path
from nl3dmm.page.embed import packed_integers, packed_values, picture_uri
from nl3dmm.page.markup import Element, data_block, document, element
from nl3dmm.page.plot import curve_plot

_PAGE = Path(__file__).with_name("page")
_VERTEX_UNIT = 0.01  # mm
_SHADING_UNIT = 0.002
_UV_UNIT = 1 / 32767
_WIDE = 1.6  # a panel of this aspect ratio or more gets a row of its own
_FALLBACK = (
    "The 3D view needs JavaScript and WebGL 2, which this browser does not offer here. "
    "Pictures and numbers are complete without it."
)
_VIEWS = {"front": "Front", "left": "Left", "right": "Right"}
_VIEW_HINTS = {
    "front": "From the front, at the first size",
    "left": "The person's left side, which is on the right of the front view",
    "right": "The person's right side, which is on the left of the front view",
}
_MODES = {"photo": "Photo light", "shaded": "Shaded", "albedo": "Albedo", "clay": "Clay"}
_MODE_HINTS = {
    "photo": "The albedo under the light of the photo",
    "shaded": "The albedo under a lamp at the viewer's upper left",
    "albedo": "The colour of the skin without any light",
    "clay": "The shape alone, in grey",
}


@dataclass(frozen=True)
class ReportMesh:
    """A textured face; UV maps of ``docs/conventions.md``: row 0 (v = 0) is the top."""

    vertices: Float[Tensor, "vertices 3"]  # mm, object frame
    triangles: Int[Tensor, "triangles 3"]
    uv: Float[Tensor, "vertices 2"]
    albedo: Float[Tensor, "3 uv_height uv_width"]  # [0, 1]
    shading: Float[Tensor, "vertices 3"] | None = None  # by the light of the photo
    encoding: Encoding = "srgb"  # how albedo and shading make a colour


@dataclass(frozen=True)
class ReportEntry:
    """What became of one photo."""

    name: str  # of the photo, shown as it is
    status: str  # "ok", or a failure such as "no_face"
    message: str = ""  # what went wrong, in plain words
    warnings: tuple[str, ...] = ()
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)  # label -> value, a column of the overview
    panel: Float[Tensor, "3 height width"] | None = None  # [0, 1]
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)  # term -> value per step; all end together
    mesh: ReportMesh | None = None


def write_report(path: str | Path, title: str, entries: Sequence[ReportEntry]) -> None:
    """Write the page; it is complete or absent, and opens from disk without a network.

    Meshes are stored to 0.01 mm; those with equal triangles and UV share them. Panels and meshes with values that are
    not finite are replaced by a sentence.

    Raises:
        ShapeError: a mesh whose parts do not belong together.
        OutputError: the file cannot be written.
    """
    topologies: dict[str, Element] = {}
    cards = [_card(index, entry, topologies) for index, entry in enumerate(entries, start=1)]
    body = [
        element("header", element("h1", title), element("p", _summary(entries), class_="summary")),
        element("main", _overview(entries), *cards, *topologies.values()),
        element("footer", f"nl3dmm {package_version('nl3dmm')}. This page is complete: it loads nothing from outside."),
        element("dialog", id="large", aria_label="Large picture"),
    ]
    style, script = ((_PAGE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    text = document(title, style, script, body)
    with atomic_path(path) as temporary:
        # File names may hold bytes that are no text; they become question marks.
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")


def _summary(entries: Sequence[ReportEntry]) -> str:
    fitted = sum(entry.status == "ok" for entry in entries)
    warned = sum(entry.status == "ok" and bool(entry.warnings) for entry in entries)
    with_warnings = f" ({warned} with warnings)" if warned else ""
    failed = f", {len(entries) - fitted} failed" if fitted < len(entries) else ""
    return f"{len(entries)} {'result' if len(entries) == 1 else 'results'}: {fitted} fitted{with_warnings}{failed}"


def _overview(entries: Sequence[ReportEntry]) -> Element:
    columns: dict[str, str | None] = {}  # label -> class
    for entry in entries:
        for name, value in entry.numbers.items():
            columns[name] = "figures" if isinstance(value, Real) else columns.get(name)
    headings = [_heading("Photo"), _heading("Status"), *(_heading(name, kind) for name, kind in columns.items())]
    head = element("tr", element("td"), *headings)
    rows = [_row(index, entry, columns) for index, entry in enumerate(entries, start=1)]
    table = element("table", element("thead", head), element("tbody", *rows))
    scroll = element("div", table, class_="scroll", tabindex="0", role="region", aria_label="Table of all photos")
    return element("section", element("h2", "Overview"), scroll, class_="overview")


def _heading(name: str, kind: str | None = None) -> Element:
    return element("th", element("button", name, type="button"), scope="col", aria_sort="none", class_=kind)


def _row(index: int, entry: ReportEntry, columns: Mapping[str, str | None]) -> Element:
    thumb = element("canvas", class_="thumb", data_face=f"face-{index}", aria_hidden="true") if entry.mesh else None
    link = element("a", entry.name, href=f"#face-{index}", class_="name")
    order = f"{0 if entry.status == 'ok' else 1} {len(entry.warnings):03d} {entry.status}"
    cells = [element("td", thumb), element("th", link, scope="row", data_value=entry.name)]
    cells.append(element("td", _status(entry), data_value=order))
    for name, kind in columns.items():
        value = entry.numbers.get(name)
        cells.append(element("td", _number(value), class_=kind, data_value=_sort_key(value)))
    return element("tr", *cells)


def _status(entry: ReportEntry) -> Element:
    if entry.status != "ok":
        words = re.sub(r"[_\s]+", " ", entry.status).strip().capitalize()
        return element("span", words or "Failed", class_="status failed")
    if entry.warnings:
        count = len(entry.warnings)
        return element("span", f"{count} warning{'' if count == 1 else 's'}", class_="status warned")
    return element("span", "Fitted", class_="status fitted")


def _number(value: float | int | str | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, Real) and not isinstance(value, int):
        return "NaN" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def _sort_key(value: float | int | str | None) -> str:
    """Empty for what is sorted last."""
    if isinstance(value, Real):
        return str(float(value)) if math.isfinite(value) else ""
    return "" if value is None else str(value)


def _card(index: int, entry: ReportEntry, topologies: dict[str, Element]) -> Element:
    identity = f"face-{index}"
    heading = element("h2", entry.name, class_="name", id=f"{identity}-name")
    parts = [element("header", heading, _status(entry))]
    if entry.message:
        parts.append(element("p", entry.message, class_="message"))
    if entry.warnings:
        parts.append(element("ul", *(element("li", warning) for warning in entry.warnings), class_="warnings"))
    parts.append(_card_body(entry, topologies))
    return element("article", *parts, id=identity, class_="card", aria_labelledby=f"{identity}-name")


def _card_body(entry: ReportEntry, topologies: dict[str, Element]) -> Element:
    """Two columns that are about equally tall; a wide panel is above both."""
    panel, viewer = _panel(entry), _viewer(entry, topologies)
    facts, curves = _facts(entry), curve_plot(entry.curves)
    is_wide = entry.panel is not None and entry.panel.shape[-1] >= _WIDE * entry.panel.shape[-2]
    columns = ((viewer,), (facts, curves)) if is_wide else ((panel, curves), (viewer, facts))
    filled = [element("div", *parts, class_="column") for parts in columns if any(part is not None for part in parts)]
    return element("div", panel if is_wide else None, *filled, class_="body")


def _panel(entry: ReportEntry) -> Element | None:
    if entry.panel is None:
        return None
    if not entry.panel.isfinite().all():
        return element("p", "The panel holds values that are not finite, so it is not shown.", class_="panel missing")
    height, width = entry.panel.shape[-2:]
    alt = f"Panel of {entry.name}: the photo beside the fitted face"
    source = picture_uri(entry.panel)
    picture = element("img", src=source, alt=alt, width=str(width), height=str(height), loading="lazy")
    return element("button", picture, type="button", class_="panel", title="Show large")


def _viewer(entry: ReportEntry, topologies: dict[str, Element]) -> Element | None:
    mesh = entry.mesh
    if mesh is None:
        return None
    _check_mesh(entry.name, mesh)
    floats = [mesh.vertices, mesh.uv, mesh.albedo, *([] if mesh.shading is None else [mesh.shading])]
    if not all(part.isfinite().all() for part in floats):
        return element("p", "The mesh holds values that are not finite, so it has no 3D view.", class_="viewer missing")
    label = f"3D view of {entry.name}. Arrow keys turn it, plus and minus zoom, 0 goes back to the front."
    canvas = element("canvas", tabindex="0", role="application", aria_label=label)
    modes = {key: text for key, text in _MODES.items() if key != "photo" or mesh.shading is not None}
    groups = (_buttons("View", _VIEWS, _VIEW_HINTS, "view"), _buttons("Surface", modes, _MODE_HINTS, "mode"))
    controls = element("div", *groups, class_="controls")
    hint = element("p", "Drag to turn. Pinch, or click and use the wheel, to zoom.", class_="hint")
    fallback = element("p", _FALLBACK, class_="fallback")
    return element("div", canvas, controls, hint, fallback, _mesh_data(mesh, topologies), class_="viewer")


def _buttons(label: str, texts: Mapping[str, str], hints: Mapping[str, str], kind: str) -> Element:
    buttons = []
    for index, (key, text) in enumerate(texts.items()):
        attributes = {f"data_{kind}": key, "aria_pressed": str(index == 0).lower() if kind == "mode" else None}
        buttons.append(element("button", text, type="button", title=hints[key], **attributes))
    return element("div", *buttons, role="group", aria_label=label, class_="buttons")


def _mesh_data(mesh: ReportMesh, topologies: dict[str, Element]) -> Element:
    shared = {"triangles": packed_integers(mesh.triangles), "uv": packed_values(mesh.uv, _UV_UNIT)}
    key = "topology-" + hashlib.sha256(repr(shared).encode()).hexdigest()[:16]
    topologies.setdefault(key, data_block(shared, id=key))
    own = {
        "topology": key,
        "encoding": mesh.encoding,
        "vertices": packed_values(mesh.vertices, _VERTEX_UNIT),
        "shading": None if mesh.shading is None else packed_values(mesh.shading, _SHADING_UNIT),
        "albedo": picture_uri(mesh.albedo),
    }
    return data_block(own, class_="mesh")


def _check_mesh(name: str, mesh: ReportMesh) -> None:
    count, shapes = len(mesh.vertices), {"vertices": 3, "uv": 2, "shading": 3}
    for part, columns in shapes.items():
        values = getattr(mesh, part)
        if values is not None and tuple(values.shape) != (count, columns):
            got = tuple(values.shape)
            raise ShapeError(f"{part} of {name}: got shape {got}; expected ({count}, {columns}). Use one template.")
    if mesh.triangles.ndim != 2 or mesh.triangles.shape[1:] != (3,) or not len(mesh.triangles):
        got = tuple(mesh.triangles.shape)
        raise ShapeError(f"triangles of {name}: got shape {got}; expected (triangles, 3). Use one template.")
    first, last = int(mesh.triangles.min()), int(mesh.triangles.max())
    if first < 0 or last >= count:
        raise ShapeError(
            f"triangles of {name}: got indices from {first} to {last}; expected 0 to {count - 1}. Use one template."
        )


def _facts(entry: ReportEntry) -> Element | None:
    if not entry.numbers:
        return None
    rows = [
        element("div", element("dt", name), element("dd", _number(value), class_="figures"))
        for name, value in entry.numbers.items()
    ]
    return element("dl", *rows, class_="facts")
