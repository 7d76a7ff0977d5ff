"""The report page as text: what is in it, what is escaped, and whether its data decode to what was given."""

import base64
import hashlib
import io
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nl3dmm.errors import OutputError, ShapeError
from nl3dmm.page.embed import packed_integers, packed_values, picture_uri
from nl3dmm.page.plot import curve_plot
from nl3dmm.report import ReportEntry, ReportMesh, write_report

NASTY = """</script><img src=x onerror="alert('1')"> & <b>"x"</b>"""


class Page(HTMLParser):
    """Elements of a page in order: tag, attributes, and the text directly inside."""

    def __init__(self, file: Path):
        super().__init__(convert_charrefs=True)
        self.source = file.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(self.source)
        assert not self._open, "unclosed elements"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("img", "meta"):
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data):
        if self._open:
            self.elements[self._open[-1]][2].append(data)

    def find(self, tag: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [
            (found, "".join(text))
            for name, found, text in self.elements
            if name == tag and all(found.get(key) == value for key, value in wanted.items())
        ]


def smooth_picture(height: int, width: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(torch.rand(1, 3, 4, 5), (height, width), mode="bicubic")[0].clamp(0, 1)


@pytest.fixture
def mesh(small_template) -> ReportMesh:
    template = small_template
    shading = torch.rand(len(template.vertices), 3) * 1.4 - 0.2
    return ReportMesh(template.vertices, template.triangles, template.uv, smooth_picture(32, 32), shading)


@pytest.fixture
def page(tmp_path):
    def write(*entries: ReportEntry, title: str = "Faces") -> Page:
        write_report(tmp_path / "report.html", title, entries)
        return Page(tmp_path / "report.html")

    return write


def unpacked(packed: dict) -> np.ndarray:
    """As nl3dmm/page/report.js reads it."""
    kind = {16: "<i2", 32: "<i4"}[packed["bits"]]
    steps = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), kind).reshape(packed["columns"], -1)
    values = np.cumsum(steps, axis=1, dtype=kind).T
    return values * packed["unit"] if "unit" in packed else values


def decoded(uri: str) -> tuple[str, torch.Tensor]:
    kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", uri).groups()
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    return kind, torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255


def test_packed_values_are_equal_to_half_a_unit():
    values = torch.randn(500, 3) * 60
    assert np.abs(unpacked(packed_values(values, 0.01)) - values.numpy()).max() <= 0.005001
    large = values * 100  # more units than int16 has
    assert np.abs(unpacked(packed_values(large, 0.01)) - large.numpy()).max() <= large.abs().max() / 32767
    assert unpacked(packed_values(torch.zeros(4, 2), 0.5)).tolist() == [[0.0, 0.0]] * 4


def test_packed_integers_are_exact_up_to_the_ends_of_int32():
    values = torch.tensor([[2**31 - 1, 0, 5], [-(2**31), 7, 4], [70_000, 1, 3]])
    assert unpacked(packed_integers(values)).tolist() == values.tolist()


def test_flat_pictures_are_exact_and_others_are_close():
    flat = torch.zeros(3, 40, 60)
    flat[:, :, 30:] = torch.tensor([1.0, 0.2, 0.6])[:, None, None]
    kind, picture = decoded(picture_uri(flat))
    assert kind == "png"
    assert picture.equal((flat * 255).round() / 255)
    smooth = smooth_picture(120, 180)
    kind, picture = decoded(picture_uri(smooth))
    assert kind in ("jpeg", "webp")
    assert (picture - smooth).abs().mean() < 0.01


def test_large_pictures_are_shrunk():
    assert decoded(picture_uri(torch.zeros(3, 100, 4096)))[1].shape == (3, 50, 2048)


def test_mesh_in_the_page_is_the_mesh(page, mesh):
    made = page(ReportEntry("a.jpg", "ok", mesh=mesh))
    ((_, text),) = made.find("script", class_="mesh")
    own = json.loads(text)
    ((_, text),) = made.find("script", id=own["topology"])
    shared = json.loads(text)
    assert np.abs(unpacked(own["vertices"]) - mesh.vertices.numpy()).max() <= 0.00501
    assert np.abs(unpacked(own["shading"]) - mesh.shading.numpy()).max() <= 0.00101
    assert unpacked(shared["triangles"]).tolist() == mesh.triangles.tolist()
    assert np.abs(unpacked(shared["uv"]) - mesh.uv.numpy()).max() <= 2e-5
    assert (decoded(own["albedo"])[1] - mesh.albedo).abs().mean() < 0.01
    assert own["encoding"] == "srgb"


def test_equal_topology_is_stored_once(page, mesh):
    other = replace(mesh, triangles=mesh.triangles.flip(0))
    made = page(*(ReportEntry(f"{index}.jpg", "ok", mesh=part) for index, part in enumerate((mesh, mesh, other))))
    keys = [json.loads(text)["topology"] for _, text in made.find("script", class_="mesh")]
    assert keys[0] == keys[1] != keys[2]
    identities = [found.get("id") for found, _ in made.find("script", type="application/json") if found.get("id")]
    assert sorted(identities) == sorted(set(keys))


def test_photo_light_is_offered_only_where_shading_is_known(page, mesh):
    made = page(ReportEntry("a.jpg", "ok", mesh=mesh), ReportEntry("b.jpg", "ok", mesh=replace(mesh, shading=None)))
    modes = [found["data-mode"] for found, _ in made.find("button", type="button") if "data-mode" in found]
    assert modes == ["photo", "shaded", "albedo", "clay", "shaded", "albedo", "clay"]


def test_all_text_is_escaped(page, mesh):
    entry = ReportEntry(NASTY, "ok", NASTY, (NASTY,), {NASTY: NASTY}, torch.zeros(3, 8, 8), {NASTY: [1.0, 0.5]}, mesh)
    made = page(entry, replace(entry, status=NASTY), title=NASTY)
    plain = page(*[ReportEntry("a", "ok", "b", ("c",), {"d": "e"}, torch.zeros(3, 8, 8), {"f": [1.0, 0.5]}, mesh)] * 2)
    assert [tag for tag, *_ in made.elements] == [tag for tag, *_ in plain.elements]
    assert not made.find("b")
    ((_, title),) = made.find("h1")
    assert title == NASTY
    ((picture, _), _) = made.find("img")
    assert picture["alt"] == f"Panel of {NASTY}: the photo beside the fitted face"


def test_names_that_are_no_text_do_not_stop_the_report(page):
    made = page(ReportEntry("caf\udce9.jpg", "ok"), ReportEntry("نور.png", "ok"))
    assert [text for _, text in made.find("h2")] == ["Overview", "caf?.jpg", "نور.png"]


def test_the_policy_allows_this_script_alone_and_no_address(page, mesh):
    made = page(ReportEntry("a.jpg", "ok", panel=torch.rand(3, 8, 8), mesh=mesh))
    (policy,) = [found["content"] for found, _ in made.find("meta") if "http-equiv" in found]
    script = [text for found, text in made.find("script") if "type" not in found]
    for (text,) in (script, [text for _, text in made.find("style")]):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?://|url\(|@import", made.source)
    assert all(found["src"].startswith("data:") for found, _ in made.find("img"))


def test_overview_has_a_row_per_entry_and_a_column_per_number(page):
    entries = (
        ReportEntry("one.jpg", "ok", numbers={"error": 0.0312345, "steps": 150}),
        ReportEntry("two.jpg", "no_face", "No face was found."),
        ReportEntry("three.jpg", "ok", warnings=("blurred", "tiny"), numbers={"error": float("nan"), "light": "dim"}),
    )
    made = page(*entries)
    headings = [text for _, text in made.find("button", type="button")]
    assert headings == ["Photo", "Status", "error", "steps", "light"]
    assert [text for found, text in made.find("a")] == ["one.jpg", "two.jpg", "three.jpg"]
    statuses = [text for found, text in made.find("span") if "status" in (found.get("class") or "")]
    assert statuses[:3] == ["Fitted", "No face", "2 warnings"]
    cells = [(text, found.get("data-value")) for found, text in made.find("td") if found.get("data-value") is not None]
    assert [value for value in cells if "ok" not in value[1] and "no_face" not in value[1]] == [
        ("0.03123", "0.0312345"), ("150", "150.0"), ("–", ""),
        ("–", ""), ("–", ""), ("–", ""),
        ("NaN", ""), ("–", ""), ("dim", "dim"),
    ]  # fmt: skip
    assert [text for _, text in made.find("p", class_="message")] == ["No face was found."]
    assert [text for _, text in made.find("p", class_="summary")] == ["3 results: 2 fitted (1 with warnings), 1 failed"]


def test_links_lead_to_cards_and_labels_to_headings(page, mesh):
    made = page(ReportEntry("a.jpg", "ok", mesh=mesh), ReportEntry("a.jpg", "ok"))
    identities = [found["id"] for _, found, _ in made.elements if "id" in found]
    assert len(identities) == len(set(identities))
    targets = [found["href"].removeprefix("#") for found, _ in made.find("a")]
    targets += [found["aria-labelledby"] for found, _ in made.find("article")]
    targets += [found["data-face"] for found, _ in made.find("canvas") if "data-face" in found]
    assert set(targets) <= set(identities)


def test_values_that_are_not_finite_become_a_sentence(page, mesh):
    panel = torch.zeros(3, 8, 8)
    panel[0, 0, 0] = torch.nan
    vertices = mesh.vertices.clone()
    vertices[5, 1] = torch.inf
    entry = ReportEntry("a.jpg", "ok", panel=panel, mesh=replace(mesh, vertices=vertices))
    made = page(replace(entry, curves={"photo": [float("nan"), 0.0, -1.0, float("inf")]}))
    sentences = [text for found, text in made.find("p") if "missing" in (found.get("class") or "")]
    assert sentences == [
        "The panel holds values that are not finite, so it is not shown.",
        "The mesh holds values that are not finite, so it has no 3D view.",
    ]
    assert not made.find("img")
    assert not made.find("script", class_="mesh")
    assert "nan" not in made.find("path", class_="line c0")[0][0]["d"]


def test_a_report_may_be_empty(page):
    made = page()
    assert not made.find("article")
    assert [text for _, text in made.find("p", class_="summary")] == ["0 results: 0 fitted"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"triangles": torch.tensor([[0, 1, 5000]])},
            r"triangles of a.jpg: got indices from 0 to 5000; expected 0 to 1023",
        ),
        ({"uv": torch.zeros(7, 2)}, r"uv of a.jpg: got shape \(7, 2\); expected \(1024, 2\)"),
        ({"shading": torch.zeros(7, 3)}, r"shading of a.jpg: got shape \(7, 3\); expected \(1024, 3\)"),
    ],
)
def test_parts_of_different_meshes_are_refused(page, mesh, change, message, tmp_path):
    changed = replace(mesh)
    for name, value in change.items():
        object.__setattr__(changed, name, value)  # past the annotations, as without a type checker
    with pytest.raises(ShapeError, match=message):
        page(ReportEntry("a.jpg", "ok", mesh=changed))
    assert not list(tmp_path.iterdir())


def test_unwritable_path_is_reported_and_the_old_page_kept(tmp_path):
    with pytest.raises(OutputError, match=r"output file: got .*missing"):
        write_report(tmp_path / "missing" / "report.html", "Faces", [])
    target = tmp_path / "report.html"
    target.mkdir()
    with pytest.raises(OutputError, match="output file: got"):
        write_report(target, "Faces", [])
    assert list(tmp_path.iterdir()) == [target]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def test_curves_are_straight_where_values_fall_exponentially():
    figure = curve_plot({"all": [10.0**-step for step in range(5)], "late": [0.01, 0.0001]})
    first, late = (points(path.get("d", "")) for path in figure.iter("path"))
    heights = np.array(first)[:, 1]
    assert np.allclose(np.diff(heights), np.diff(heights)[0], atol=0.11)
    assert heights[0] < heights[-1]
    assert late[-1] == pytest.approx(first[-1])  # a term that joined later ends with the others
    assert late[0][0] == pytest.approx(first[3][0])


def test_curves_have_gaps_and_long_ones_keep_their_last_value():
    (path,) = curve_plot({"a": [1.0, 0.0, 0.1, 0.01]}).iter("path")
    assert re.sub(r"[\d. ]+", "", path.get("d", "")) == "MhML"
    (path,) = curve_plot({"a": [1.0] * 1000 + [0.001]}).iter("path")
    assert 100 < len(points(path.get("d", ""))) <= 150
    assert points(path.get("d", ""))[-1][1] > 200 - 20
    assert curve_plot({}) is None
    assert curve_plot({"a": []}) is None
