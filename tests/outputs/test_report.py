"""The page in a browser: what its canvases hold is what the scan holds at that place."""

from __future__ import annotations

import base64
import re
import shutil

import cv2
import numpy as np
import pytest
from helpers.full_disk import full_disk
from playwright.sync_api import sync_playwright

from liverseg.errors import InputError
from liverseg.io.volumes import read_volume
from liverseg.outputs.report import write_page
from liverseg.outputs.segmentation import Segmentation

COLOURS = {1: "#ff0000", 2: "#00c800", 3: "#0000ff"}
NAMES = {1: "liver", 2: "lesion", 3: "spleen"}
SPACING_MM = (1.5, 2.0, 4.0)
SHAPE = (40, 30, 20)
# Of a level between two codes, and rounding.
GREY_LEVELS = 2
PLANES = {
    "axial": (2, lambda volume, index: volume[:, :, index]),
    "coronal": (1, lambda volume, index: volume[:, index]),
    "sagittal": (0, lambda volume, index: volume[index]),
}


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """A CT and its mask in RAS order: no two directions look alike."""
    image = np.random.default_rng(0).uniform(-140, 230, SHAPE).astype(np.float32)
    image[0, 0, 0] = -1000
    mask = np.zeros(SHAPE, np.uint8)
    # The patient's right is where x is large.
    mask[22:36, 8:22, 6:15] = 1
    mask[26:30, 12:16, 9:12] = 2
    mask[4:10, 5:12, 10:16] = 3
    return image, mask


def turned(degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def affine_of(rotation: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation * SPACING_MM
    affine[:3, 3] = -30, 12, 700
    return affine


def stored(array: np.ndarray, flips: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    return np.flip(array, flips).transpose(axes)


def stored_affine(affine: np.ndarray, flips: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    for axis in flips:
        affine = affine.copy()
        affine[:3, 3] += (SHAPE[axis] - 1) * affine[:3, axis]
        affine[:3, axis] *= -1
    return affine[:, [*axes, 3]]


def segmentation(mask: np.ndarray, affine: np.ndarray, **more) -> Segmentation:
    return Segmentation("scan é <i>.nii.gz", mask, affine, NAMES, "a_bundle", "1.2", **more)


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    with sync_playwright() as playwright:
        # Without a graphics card, its process may hang.
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Write a page and open it; nothing but its file is asked for, and nothing goes wrong."""
    context = browser.new_context(has_touch=True, viewport={"width": 1366, "height": 768})
    asked, problems = [], []

    def open_page(*args, **kwargs):
        path = tmp_path / "page é.html"
        write_page(path, *args, **kwargs)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        context.set_offline(True)
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        assert asked == [path.as_uri()]
        return page

    yield open_page
    context.close()
    assert len(asked) == 1
    assert not problems


@pytest.fixture
def shown(opened):
    """The page of the phantom."""
    image, mask = phantom()
    return opened(segmentation(mask, affine_of(np.eye(3))), image, COLOURS)


def pixels(page, canvas: str) -> np.ndarray:
    """RGB (rows, columns, 3) of a canvas, once it is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    url = page.evaluate("(id) => document.getElementById(id).toDataURL('image/png')", canvas)
    png = np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8)
    return cv2.imdecode(png, cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def position(page, plane: str) -> int:
    return page.locator(f"#{plane}-slice").evaluate("(slider) => slider.valueAsNumber") - 1


def grey(section: np.ndarray, low: float = -160, high: float = 240) -> np.ndarray:
    """A section (X, Y) of an array in RAS order as a radiologist holds it, in grey levels."""
    return 255 * np.clip((section[::-1, ::-1].T.astype(float) - low) / (high - low), 0, 1)


def coloured(image: np.ndarray, mask: np.ndarray, opacity: float = 0.4) -> np.ndarray:
    """Section with its mask over it, RGB."""
    levels = np.repeat(grey(image)[..., None], 3, axis=2)
    classes = mask[::-1, ::-1].T
    for value, colour in COLOURS.items():
        rgb = np.array([*bytes.fromhex(colour[1:])], float)
        inside = classes == value
        levels[inside] += opacity * (rgb - levels[inside])
    return levels


@pytest.mark.parametrize(
    ("flips", "axes", "degrees"),
    [
        ((), (0, 1, 2), 0),  # RAS
        ((0, 1), (0, 1, 2), 0),  # LPS
        ((0, 2), (2, 0, 1), 0),
        ((1,), (1, 2, 0), 20),
    ],
)
def test_each_plane_shows_what_lies_there(opened, flips, axes, degrees):
    image, mask = phantom()
    affine = stored_affine(affine_of(turned(degrees)), flips, axes)
    page = opened(
        segmentation(stored(mask, flips, axes), affine), stored(image, flips, axes), COLOURS
    )
    for plane, (axis, section) in PLANES.items():
        index = position(page, plane)
        area = (mask > 0).sum(tuple({0, 1, 2} - {axis}))
        assert area[index] == area.max()
        expected = coloured(section(image, index), section(mask, index))
        assert np.abs(pixels(page, plane) - expected).max() <= GREY_LEVELS
        # The proportions of the body.
        columns, rows = (other for other in range(3) if other != axis)
        ratio = SHAPE[columns] * SPACING_MM[columns] / (SHAPE[rows] * SPACING_MM[rows])
        box = page.locator(f"#{plane}").bounding_box()
        assert box["width"] > 100
        assert box["width"] / box["height"] == pytest.approx(ratio, rel=0.02)
    edges = page.locator("[data-plane=sagittal] .edge").all_inner_texts()
    assert edges == ["A", "P", "H", "F"]
    assert ("oblique" in page.inner_text("main")) == bool(degrees)
    if degrees:
        assert "tilted by up to 20°" in page.inner_text("main")


def test_wheel_slider_keys_and_finger_scroll(shown):
    image, mask = phantom()
    first = position(shown, "axial")

    def shows(index: int) -> bool:
        expected = coloured(image[..., index], mask[..., index])
        close = np.abs(pixels(shown, "axial") - expected).max() <= GREY_LEVELS
        return close and shown.inner_text("[data-plane=axial] output") == f"{index + 1} / 20"

    canvas = shown.locator("#axial")
    canvas.hover()
    shown.mouse.wheel(0, 100)
    shown.wait_for_function(f"document.querySelector('#axial-slice').value == {first}")
    assert shows(first - 1)
    shown.mouse.wheel(0, -100)
    shown.wait_for_function(f"document.querySelector('#axial-slice').value == {first + 1}")
    canvas.focus()
    shown.keyboard.press("ArrowUp")
    assert shows(first + 1)
    shown.keyboard.press("Home")
    assert shows(0)
    shown.keyboard.press("PageUp")
    assert shows(10)
    shown.locator("#axial-slice").focus()
    shown.keyboard.press("End")
    assert shows(19)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = shown.context.new_cdp_session(shown)
    for kind, points in (
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", [{"x": x, "y": y + 30}]),
        ("touchEnd", []),
    ):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    # 6 pixels a slice, downwards to the feet.
    assert shows(19 - 5)


def test_a_click_leads_the_other_planes_to_the_place(shown):
    image, _ = phantom()
    box = shown.locator("#axial").bounding_box()
    k = position(shown, "axial")
    # The voxel x = 30, y = 7: right of the patient is left, front is up.
    x = box["x"] + box["width"] * (40 - 30 - 0.5) / 40
    shown.mouse.click(x, box["y"] + box["height"] * (30 - 7 - 0.5) / 30)
    assert [position(shown, plane) for plane in ("sagittal", "coronal", "axial")] == [30, 7, k]
    found = re.search(r"about (-?\d+) HU, (\w+)", shown.inner_text("#readout"))
    assert float(found[1]) == pytest.approx(image[30, 7, k], abs=2)
    assert found[2] == "background"


def test_the_mask_can_be_taken_off_whole_or_in_part(shown):
    image, mask = phantom()
    k = position(shown, "axial")
    shown.get_by_label("lesion").uncheck()
    without = np.where(mask == 2, 0, mask)
    expected = coloured(image[..., k], without[..., k])
    assert np.abs(pixels(shown, "axial") - expected).max() <= GREY_LEVELS
    shown.get_by_label("Opacity").fill("100")
    expected = coloured(image[..., k], without[..., k], opacity=1)
    assert np.abs(pixels(shown, "axial") - expected).max() <= GREY_LEVELS
    assert pixels(shown, "surface").any()
    shown.get_by_label("Show the mask").uncheck()
    bare = pixels(shown, "axial")
    assert (np.ptp(bare, axis=-1) == 0).all()
    assert np.abs(bare[..., 0] - grey(image[..., k])).max() <= GREY_LEVELS
    # Letters are grey, and nothing else is left.
    assert (np.ptp(pixels(shown, "surface"), axis=-1) < 30).all()


def test_windows_of_ct(opened):
    image = np.linspace(-1020, 1900, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    page = opened(segmentation(np.zeros(SHAPE, np.uint8), np.diag([2, 2, 2, 1])), image, COLOURS)
    assert "The mask is empty" in page.inner_text("body")
    k = position(page, "axial")
    assert k == SHAPE[2] // 2
    # Codes are 2.5 HU apart in soft tissue, 18 HU below and 38 HU above.
    for name, low, high, step_hu in (
        ("Liver", -20, 140, 2.5),
        ("Soft tissue", -160, 240, 18.3),
        ("Lung", -1350, 150, 18.3),
        ("Bone", -500, 1300, 37.3),
    ):
        page.locator("label", has_text=name).click()
        expected = grey(image[..., k], low, high)
        furthest = np.abs(pixels(page, "axial")[..., 0] - expected).max()
        assert furthest <= 1 + 255 * step_hu / 2 / (high - low)


def test_intensities_of_mr_are_shown_between_percentiles(opened):
    image = np.random.default_rng(1).gamma(2, 120, SHAPE).astype(np.float32)
    page = opened(segmentation(np.zeros(SHAPE, np.uint8), np.diag([2, 2, 2, 1])), image, COLOURS)
    k = position(page, "axial")
    for name, shares in (("1 to 99.5 %", (1, 99.5)), ("5 to 98 %", (5, 98))):
        page.locator("label", has_text=name).click()
        expected = grey(image[..., k], *np.percentile(image, shares))
        assert np.abs(pixels(page, "axial")[..., 0] - expected).max() <= GREY_LEVELS
    assert "HU" not in page.inner_text("main")


def test_the_surface_is_seen_from_the_front_and_turns(shown):
    def places() -> dict[str, float]:
        """Columns of the classes' middles, in shares of the width."""
        picture = pixels(shown, "surface")
        others = picture.sum(-1, keepdims=True) - picture
        columns = {
            name: np.nonzero(picture[..., channel] > 2 * others[..., channel] + 30)[1].mean()
            for channel, name in ((0, "liver"), (2, "spleen"))
        }
        return {name: column / picture.shape[1] for name, column in columns.items()}

    front = pixels(shown, "surface")
    at_first = places()
    assert at_first["liver"] < 0.5 < at_first["spleen"]
    # The lesion is seen through the liver.
    assert (front[..., 1] > front[..., 2] + 20).any()
    shown.locator("#surface").focus()
    shown.keyboard.press("ArrowRight")
    assert (pixels(shown, "surface") != front).any()
    # 21 steps of 0.15 are half a turn: seen from behind.
    for _ in range(20):
        shown.keyboard.press("ArrowRight")
    behind = places()
    assert behind["spleen"] < 0.5 < behind["liver"]
    shown.get_by_role("button", name="From the front").click()
    assert (pixels(shown, "surface") == front).all()
    box = shown.locator("#surface").bounding_box()
    shown.mouse.move(box["x"] + 100, box["y"] + 100)
    shown.mouse.down()
    shown.mouse.move(box["x"] + 160, box["y"] + 100)
    shown.mouse.up()
    assert (pixels(shown, "surface") != front).any()


def test_tables_name_units_and_lead_to_the_lesion(opened):
    image, mask = phantom()
    affine = stored_affine(affine_of(turned(20)), (0, 1), (0, 1, 2))
    centroid = affine_of(turned(20)) @ (28, 14, 10, 1)
    statistics = {
        "modality": "ct",
        "classes": {
            "liver": {"volume_ml": 1523.44, "mean_hu": None, "centroid_ras_mm": None},
            "spleen": {"volume_ml": 0.0, "mean_hu": 45, "centroid_ras_mm": None},
        },
        "lesions": [{"lesion": 1, "volume_ml": 0.0345, "centroid_ras_mm": [*centroid[:3]]}],
    }
    page = opened(
        segmentation(
            *(stored(mask, (0, 1), (0, 1, 2)), affine),
            flags={"volume": "The liver is <b>small</b>."},
            warnings=("Slices are 4 mm apart.",),
        ),
        *(stored(image, (0, 1), (0, 1, 2)), COLOURS),
        statistics=statistics,
        facts={"Settings": "tta & more"},
    )
    assert page.inner_text("h1") == page.title() == "scan é <i>.nii.gz"
    notices = page.locator(".notice:visible").all_inner_texts()
    assert notices[0].startswith("Not for clinical use.")
    assert notices[1:] == ["The liver is <b>small</b>.", "Slices are 4 mm apart."]
    classes, lesions, facts = (table.inner_text() for table in page.locator("table").all())
    assert [line.split("\t")[:3] for line in classes.splitlines()] == [
        ["Name", "Volume, ml", "Mean, HU"],
        ["liver", "1523.4", "–"],
        ["spleen", "0.0", "45"],
    ]
    assert "0.035" in lesions
    for text in ("a_bundle 1.2", "40 × 30 × 20 voxels of 1.50 × 2.00 × 4.00 mm", "tta & more"):
        assert text in facts
    page.get_by_role("button", name="Show 1 in the pictures").click()
    assert [position(page, plane) for plane in ("sagittal", "coronal", "axial")] == [28, 14, 10]
    assert page.inner_text("#readout").endswith("lesion")


def test_classes_that_are_not_seen_are_named(opened):
    image = np.zeros((120, 120, 120), np.float32)
    mask = np.zeros(image.shape, np.uint8)
    mask[20:80, 20:80, 20:80] = 1
    mask[100, 100, 100] = 2
    # 27 voxels become one.
    page = opened(segmentation(mask, np.diag([0.3, 0.3, 0.3, 1])), image, COLOURS)
    text = page.inner_text(".controls")
    assert "Too small to be seen here: lesion" in text
    assert "Not found: spleen" in text
    assert "40 × 40 × 40 voxels of 0.90 × 0.90 × 0.90 mm" in page.inner_text("main")


@pytest.mark.parametrize("shape", [(24, 20, 1), (1, 20, 24), (1, 1, 1)])
def test_one_slice_is_a_scan_too(opened, shape):
    page = opened(
        segmentation(np.ones(shape, np.uint8), np.diag([1, 1, 5, 1])),
        *(np.full(shape, 40, np.float32), COLOURS),
    )
    # A value that all voxels have is neither black nor white by itself.
    assert (np.ptp(pixels(page, "coronal"), axis=(0, 1)) == 0).all()
    assert pixels(page, "surface").any()


def test_a_mask_of_another_scan_is_refused(tmp_path):
    image, mask = phantom()
    with pytest.raises(InputError, match=r"scan é.*\(40, 30, 20\).*\(40, 30, 19\).*mask of this"):
        write_page(tmp_path / "a.html", segmentation(mask, np.eye(4)), image[..., :19], COLOURS)


def test_a_full_disk_leaves_the_page_that_was_there(tmp_path):
    image, mask = phantom()
    path = tmp_path / "page.html"
    path.write_text("before")
    with full_disk(1000), pytest.raises(InputError, match=r"page\.html: could not be saved"):
        write_page(path, segmentation(mask, np.eye(4)), image, COLOURS)
    assert path.read_text() == "before"


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["ts_ct", "ts_mr"])
def test_real_scans_are_shown(opened, samples, name):
    scan, mask = (read_volume(str(samples / f"{name}{end}.nii.gz")) for end in ("", "_organs"))
    values = [int(value) for value in np.unique(mask.array) if value]
    page = opened(
        Segmentation(
            name,
            mask.array.astype(np.uint8),
            scan.affine,
            {value: f"organ {value}" for value in values},
        ),
        *(scan.array, dict.fromkeys(values, "#cc8844")),
    )
    for canvas in (*PLANES, "surface"):
        assert pixels(page, canvas).std() > 10
