"""The report in a real headless Chromium: the face is drawn the right way round, and the page has no errors."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import PROGRAM, WITHOUT_WEBGL, Browser
from PIL import Image

from nl3dmm.geometry.lighting import light_albedo
from nl3dmm.report import ReportEntry, ReportMesh, write_report

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
RIGHT, LEFT, TOP = (0.8, 0.2, 0.1), (0.1, 0.6, 0.2), (0.2, 0.3, 0.9)  # sides of the person; the top quarter of the map
SHADING = (0.9, 0.6, 0.3)


@pytest.fixture(scope="module")
def report(tmp_path_factory, template) -> Path:
    """Two faces with the same coloured map, the second one 20 mm further left, and a failure."""
    colours = torch.tensor(RIGHT)[:, None, None].repeat(1, 64, 80)
    colours[:, :, 40:] = torch.tensor(LEFT)[:, None, None]
    colours[:, :16] = torch.tensor(TOP)[:, None, None]
    shading = torch.tensor(SHADING).expand(len(template.vertices), 3).contiguous()
    mesh = ReportMesh(template.vertices, template.triangles, template.uv, colours, shading)
    moved = replace(mesh, vertices=mesh.vertices + torch.tensor([20.0, 0, 0]), shading=None)
    panel = torch.rand(3, 32, 96)
    entries = (
        ReportEntry("b 10 <i>.jpg", "ok", numbers={"error": 0.04}, panel=panel, curves={"photo": [1.0]}, mesh=mesh),
        ReportEntry("a.jpg", "no_face", "No face was found. Crop the photo."),
        ReportEntry("b 9.jpg", "ok", warnings=("The face is small.",), numbers={"error": 0.3}, mesh=moved),
    )
    file = tmp_path_factory.mktemp("report") / "report # 1.html"
    write_report(file, "Faces", entries)
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = Browser(tmp_path_factory.mktemp("browser"))
    yield program
    program.close()


@pytest.fixture
def page(browser, report) -> Browser:
    browser.open(report)
    show(browser, 1)
    return browser


def show(browser: Browser, index: int) -> None:
    """Bring a face into view; it is drawn then."""
    browser.run(f"document.querySelector('#face-{index} canvas').scrollIntoView({{behavior: 'instant'}})")
    browser.wait_for(f"![0, 300].includes(document.querySelector('#face-{index} canvas').width)")  # 300: untouched


def settle(browser: Browser) -> None:
    """Until what was asked for is drawn."""
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))))")


def click(browser: Browser, selector: str) -> None:
    browser.run(f"document.querySelector('{selector}').click()")
    settle(browser)


def seen(browser: Browser, index: int = 1) -> np.ndarray:
    """RGBA of a face's canvas, (side, side, 4) in [0, 1]."""
    uri = browser.run(f"document.querySelector('#face-{index} .viewer canvas').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA")) / 255


def at(picture: np.ndarray, right: float, down: float) -> np.ndarray:
    """Colour at a place in [0, 1]."""
    return picture[int(down * len(picture)), int(right * len(picture))][:3]


def key(browser: Browser, name: str, times: int = 1) -> None:
    browser.run("document.querySelector('#face-1 canvas').focus({preventScroll: true})")
    for _ in range(times):
        browser.send("Input.dispatchKeyEvent", type="keyDown", key=name)
        browser.send("Input.dispatchKeyEvent", type="keyUp", key=name)
    settle(browser)


def place(browser: Browser) -> tuple[float, float]:
    """Middle of the first canvas, px of the window."""
    box = browser.run("(({x, y, width, height}) => [x + width / 2, y + height / 2])"
                      "(document.querySelector('#face-1 canvas').getBoundingClientRect().toJSON())")  # fmt: skip
    return box[0], box[1]


def mouse(browser: Browser, kind: str, x: float, y: float, **more) -> None:
    pressed = {"button": "left", "buttons": 1, "clickCount": 1}
    browser.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **(pressed | more))


def share(picture: np.ndarray, colour: tuple[float, float, float]) -> float:
    """Of the drawn pixels, those of a colour."""
    drawn = picture[picture[..., 3] > 0.99][:, :3]
    return float((np.abs(drawn - colour).max(1) < 0.02).mean())


def test_page_has_no_errors_and_loads_nothing_from_outside(page):
    show(page, 3)
    assert page.problems == []
    assert {url.partition(":")[0] for url in page.loaded} == {"file", "data"}
    assert page.run("document.querySelectorAll('.thumb').length") == 2


def test_front_view_has_the_persons_left_on_the_right(page):
    click(page, "#face-1 [data-mode=albedo]")
    picture = seen(page)
    assert np.allclose(at(picture, 0.35, 0.6), RIGHT, atol=0.02)
    assert np.allclose(at(picture, 0.65, 0.6), LEFT, atol=0.02)
    assert np.allclose(at(picture, 0.5, 0.17), TOP, atol=0.02)
    assert picture[2, 2, 3] == 0
    assert 0.2 < (picture[..., 3] > 0.5).mean() < 0.8
    screen = np.asarray(Image.open(io.BytesIO(page.picture())).convert("RGB")) / 255
    x, y = place(page)
    assert np.allclose(screen[int(y) + 60, int(x) - 60], RIGHT, atol=0.02)
    assert np.allclose(screen[int(y) + 60, int(x) + 60], LEFT, atol=0.02)


@pytest.mark.parametrize(("button", "colour", "other"), [("left", LEFT, RIGHT), ("right", RIGHT, LEFT)])
def test_side_views_show_that_side_alone(page, button, colour, other):
    click(page, "#face-1 [data-mode=albedo]")
    click(page, f"#face-1 [data-view={button}]")
    picture = seen(page)
    assert share(picture, colour) > 0.5
    assert share(picture, other) < 0.02
    columns = np.flatnonzero((picture[..., 3] > 0.5).any(0))
    nose_row = picture[len(picture) // 2 : len(picture) * 2 // 3, :, 3] > 0.5
    tip = np.flatnonzero(nose_row.any(0))
    # The nose is the outermost part: at the left of the picture of the person's left side.
    assert (tip[0] == columns[0]) if button == "left" else (tip[-1] == columns[-1])
    click(page, "#face-1 [data-view=front]")
    assert abs(share(seen(page), LEFT) - share(seen(page), RIGHT)) < 0.05


def test_photo_light_is_albedo_times_shading_in_linear_light(page):
    lit = light_albedo(torch.tensor(LEFT), torch.tensor(SHADING), "srgb").numpy()
    assert np.allclose(at(seen(page), 0.65, 0.6), lit, atol=0.02)


def test_clay_is_grey_and_shaded_is_neither(page):
    click(page, "#face-1 [data-mode=clay]")
    drawn = seen(page)
    drawn = drawn[drawn[..., 3] == 1][:, :3]
    assert np.ptp(drawn, axis=1).max() < 0.03
    assert np.ptp(drawn.mean(1)) > 0.3
    click(page, "#face-1 [data-mode=shaded]")
    shaded = seen(page)
    assert at(shaded, 0.65, 0.6)[1] > at(shaded, 0.65, 0.6)[0] + 0.1
    assert share(shaded, LEFT) < 0.2
    assert page.run("document.querySelector('#face-1 [aria-pressed=true]').dataset.mode") == "shaded"


def test_second_face_is_drawn_by_the_same_context(page):
    show(page, 3)
    click(page, "#face-3 [data-mode=albedo]")
    assert np.allclose(at(seen(page, 3), 0.65, 0.6), LEFT, atol=0.02)  # centred, though it is moved


def test_dragging_and_arrow_keys_turn_the_face_the_same_way(page):
    click(page, "#face-1 [data-mode=albedo]")
    x, y = place(page)
    mouse(page, "mousePressed", x, y)
    mouse(page, "mouseMoved", x + 60, y)
    mouse(page, "mouseMoved", x + 120, y)
    mouse(page, "mouseReleased", x + 120, y, buttons=0)
    settle(page)
    dragged = seen(page)
    assert share(dragged, RIGHT) > share(dragged, LEFT) + 0.2  # pulled to the right, the person's right side comes
    key(page, "0")
    assert abs(share(seen(page), LEFT) - share(seen(page), RIGHT)) < 0.05
    key(page, "ArrowRight", 4)
    assert share(seen(page), RIGHT) > share(seen(page), LEFT) + 0.2
    key(page, "ArrowLeft", 8)
    assert share(seen(page), LEFT) > share(seen(page), RIGHT) + 0.2


def test_looking_from_below_and_above(page):
    click(page, "#face-1 [data-mode=albedo]")
    front = share(seen(page), TOP)
    key(page, "ArrowDown", 4)
    assert share(seen(page), TOP) > front
    key(page, "ArrowUp", 8)
    assert share(seen(page), TOP) < front


def test_wheel_zooms_only_once_the_face_is_clicked(page):
    before, (x, y) = (seen(page)[..., 3] > 0.5).mean(), place(page)
    mouse(page, "mouseWheel", x, y, deltaX=0, deltaY=-300, button="none", buttons=0)
    settle(page)
    assert (seen(page)[..., 3] > 0.5).mean() == before
    show(page, 1)
    x, y = place(page)
    mouse(page, "mousePressed", x, y)
    mouse(page, "mouseReleased", x, y, buttons=0)
    mouse(page, "mouseWheel", x, y, deltaX=0, deltaY=-300, button="none", buttons=0)
    settle(page)
    assert (seen(page)[..., 3] > 0.5).mean() > 1.2 * before
    key(page, "-", 3)
    assert (seen(page)[..., 3] > 0.5).mean() < 1.2 * before


def names(browser: Browser) -> list[str]:
    return browser.run("[...document.querySelectorAll('tbody a')].map((link) => link.textContent)")


def test_table_sorts_numbers_names_and_gaps(page):
    def sort(column: int) -> list[str]:
        page.run(f"document.querySelectorAll('th button')[{column}].click()")
        return names(page)

    assert names(page) == ["b 10 <i>.jpg", "a.jpg", "b 9.jpg"]
    assert sort(0) == ["a.jpg", "b 9.jpg", "b 10 <i>.jpg"]
    assert sort(2) == ["b 10 <i>.jpg", "b 9.jpg", "a.jpg"]
    assert sort(2) == ["b 9.jpg", "b 10 <i>.jpg", "a.jpg"]  # the other way, the failure without a number still last
    assert sort(1) == ["b 10 <i>.jpg", "b 9.jpg", "a.jpg"]
    assert page.run("[...document.querySelectorAll('[aria-sort]')].map((cell) => cell.ariaSort)") == [
        "none", "ascending", "none"
    ]  # fmt: skip


def test_panel_opens_large_and_closes(page):
    click(page, "button.panel")
    assert page.run("document.querySelector('dialog[open] img').naturalWidth") == 96
    click(page, "dialog")
    assert page.run("document.querySelector('dialog[open]')") is None


@pytest.mark.parametrize("dark", [False, True])
def test_themes_differ_and_text_stands_out(browser, report, dark):
    browser.open(report, dark=dark)
    screen = np.asarray(Image.open(io.BytesIO(browser.picture())).convert("L")) / 255
    assert (screen[5, 5] < 0.2) == dark
    text, back = browser.run("((style) => [style.color, style.backgroundColor])(getComputedStyle(document.body))")
    assert (text < back) != dark


def test_phone_needs_no_sideways_scrolling(browser, report):
    browser.open(report, width=360, height=740, phone=True)
    show(browser, 1)
    assert browser.run("document.documentElement.scrollWidth") == 360
    assert browser.run("document.querySelector('#face-1 canvas').width") >= 2 * 280  # sharp on a fine screen
    assert browser.problems == []


def test_one_finger_turns_and_two_fingers_zoom(browser, report):
    browser.open(report, width=360, height=740, phone=True)
    browser.send("Emulation.setTouchEmulationEnabled", enabled=True)
    show(browser, 1)
    click(browser, "#face-1 [data-mode=albedo]")
    before, (x, y) = (seen(browser)[..., 3] > 0.5).mean(), place(browser)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        fingers = [{"x": left, "y": top, "id": index} for index, (left, top) in enumerate(places)]
        browser.send("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    touch("touchStart", (x - 30, y), (x + 30, y))
    touch("touchMove", (x - 45, y), (x + 45, y))
    touch("touchMove", (x - 60, y), (x + 60, y))
    touch("touchEnd")
    settle(browser)
    assert (seen(browser)[..., 3] > 0.5).mean() > 1.3 * before
    touch("touchStart", (x, y))
    for step in range(1, 5):
        touch("touchMove", (x + 25 * step, y))
    touch("touchEnd")
    settle(browser)
    picture = seen(browser)
    browser.send("Emulation.setTouchEmulationEnabled", enabled=False)
    assert share(picture, RIGHT) > share(picture, LEFT) + 0.2


def test_without_webgl_a_sentence_takes_the_place_of_the_view(report, tmp_path):
    browser = Browser(tmp_path, WITHOUT_WEBGL)
    try:
        browser.open(report)
        assert browser.run("getComputedStyle(document.querySelector('#face-1 .viewer canvas')).display") == "none"
        assert "WebGL" in browser.run("document.querySelector('#face-1 .viewer').innerText")
        browser.run("document.querySelectorAll('th button')[0].click()")
        assert names(browser)[0] == "a.jpg"
    finally:
        browser.close()
