"""The page in a real browser: Debian's Chromium, headless, with WebGL in software."""

import base64
import time

import numpy as np
import pytest

import gmodiff
from chromium_hdr import CHROMIUM, missing
from gmodiff.gainmap import apply_log2_gain
from gmodiff.radiometry import srgb_decode, srgb_encode
from web_page import EXAMPLES, SOFTWARE_WEBGL, Served

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

DROP = """async ([files]) => {
  const dropped = new DataTransfer();
  for (const [name, data] of files) {
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    dropped.items.add(new File([bytes], name));
  }
  document.dispatchEvent(new DragEvent('drop', { dataTransfer: dropped, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    made = Served("--model", "none", place=tmp_path_factory.mktemp("place"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        opened = player.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_WEBGL)
        yield opened
        opened.close()


@pytest.fixture
def page(served, browser):
    """A fresh page, and afterwards: nothing was asked of anybody else, and nothing went wrong in it."""
    context = browser.new_context(viewport={"width": 1300, "height": 950}, accept_downloads=True)
    opened = context.new_page()
    asked, wrong = [], []
    opened.on("request", lambda r: asked.append(r.url))
    opened.on("pageerror", lambda e: wrong.append(str(e)))
    opened.on("console", lambda m: wrong.append(m.text) if m.type == "error" and "400" not in m.text else None)
    opened.goto(served.url)
    opened.wait_for_selector("html[data-ready]")
    yield opened
    context.close()
    clean(served)
    assert not [u for u in asked if not u.startswith((served.url, "blob:"))]
    assert not wrong


def clean(served):
    """No photos and no jobs."""
    for job in served.ask("GET", "/api/jobs")[1]:
        served.ask("DELETE", f"/api/jobs/{job['id']}")
    for photo in served.ask("GET", "/api/photos")[1]:
        served.ask("DELETE", f"/api/photos/{photo['id']}")


def drop(page, *files):
    """Drop files: paths, or (name, bytes)."""
    pairs = [f if isinstance(f, tuple) else (f.name, f.read_bytes()) for f in files]
    page.evaluate(DROP, [[[name, base64.b64encode(data).decode()] for name, data in pairs]])


def until(page, expression: str, seconds: float = 60.0):
    """Wait for something to be true in the page (its policy forbids the usual way)."""
    for _ in range(int(seconds / 0.05)):
        if found := page.evaluate(expression):
            return found
        time.sleep(0.05)
    raise AssertionError(f"never true: {expression}; {page.inner_text('#in')}")


def settled(page):
    """Every tile that is looked at is there and drawn."""
    for _ in range(3):
        until(page, "gmodiff.viewer.complete")
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def merged(page, *files):
    """Drop, merge, and wait for the picture."""
    drop(page, *(files or EXAMPLES))
    page.click(".bracket button.main", timeout=60_000)
    page.wait_for_selector("#viewer:not([hidden])", timeout=120_000)
    settled(page)


def at(page, x: int, y: int) -> list[int]:
    """What is drawn of one pixel of the picture, at 1:1 around it."""
    page.evaluate(f"gmodiff.viewer.zoomTo(1), gmodiff.viewer.view.x = {x} + 0.5, gmodiff.viewer.view.y = {y} + 0.5, gmodiff.viewer.moved()")
    settled(page)
    place = page.evaluate(
        f"(() => {{ const v = gmodiff.viewer, c = v.size; return [Math.floor(({x} + 0.5 - v.view.x) * v.view.zoom + c.width / 2),"
        f" Math.floor(({y} + 0.5 - v.view.y) * v.view.zoom + c.height / 2)]; }})()"
    )
    return page.evaluate("([x, y]) => gmodiff.viewer.read(x, y)", place)


def slide(page, selector: str, value: float):
    page.evaluate(
        "([s, v]) => { const i = document.querySelector(s); i.value = v; i.dispatchEvent(new Event('input', { bubbles: true })); }",
        [selector, value],
    )


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """What the library makes of the same photos."""
    return gmodiff.reconstruct(gmodiff.read_bracket(EXAMPLES))


PLACES = [(100, 700), (600, 400), (1100, 80), (640, 250)]


def test_from_dropped_photos_to_a_file_that_decodes(page, truth, tmp_path):
    merged(page)
    for name, suffix in (("Ultra HDR", ".jpg"), ("EXR", ".exr")):
        with page.expect_download(timeout=60_000) as waiting:
            page.click(f"#files-out a:has-text('{name}')")
        assert waiting.value.suggested_filename == f"sunset_1_hdr{suffix}"
        waiting.value.save_as(tmp_path / f"out{suffix}")
    assert np.array_equal(gmodiff.read(tmp_path / "out.exr").radiance, np.float16(truth.radiance).astype(np.float32))
    assert gmodiff.read(tmp_path / "out.jpg").gain_map is not None


def test_the_exposure_slider_shows_the_light_at_that_exposure(page, truth):
    merged(page)
    for stops in (0.0, -2.0, 1.5):
        slide(page, "#exposure", stops)
        for x, y in PLACES:
            expected = 255 * srgb_encode(np.clip(truth.radiance[y, x].astype(float) * 2**stops, 0, 1))
            assert np.abs(np.array(at(page, x, y)) - expected).max() <= 1.5, (stops, x, y)


def test_the_headroom_slider_shows_what_the_gain_map_formula_says(page, truth):
    merged(page)
    page.check("[name=mode][value=screen]")
    m = truth.gain_map.metadata
    for headroom in (0.0, 0.5 * m.alternate_headroom, m.alternate_headroom):
        slide(page, "#headroom", headroom)
        for dim in (True, False):
            page.set_checked("#dim", dim)
            for x, y in PLACES:
                base = np.asarray(srgb_decode(truth.base[y : y + 1, x : x + 1] / 255.0), np.float32)
                gain = m.log2_gain(truth.gain_map.codes[y : y + 1, x : x + 1].astype(np.float32) / 255)
                stops = float(page.evaluate("gmodiff.viewer.state.headroom"))
                light = apply_log2_gain(base, gain, m, stops)[0, 0] * (2**-stops if dim else 1)
                expected = 255 * srgb_encode(np.clip(light.astype(float), 0, 1))
                assert np.abs(np.array(at(page, x, y)) - expected).max() <= 1.5, (headroom, dim, x, y)


def test_overlays_paint_what_provenance_says(page, truth):
    merged(page)
    tints = {1: (0.0, 0.447, 0.698), 2: (0.902, 0.624, 0.0)}
    page.select_option("#overlay", "provenance")
    for label in (0, 1, 2):
        rows, columns = np.nonzero(truth.provenance == label)
        if not len(rows):
            continue
        y, x = int(rows[len(rows) // 2]), int(columns[len(rows) // 2])
        plain = srgb_encode(np.clip(truth.radiance[y, x].astype(float), 0, 1))
        expected = plain if label == 0 else 0.4 * plain + 0.6 * np.array(tints[label])
        assert np.abs(np.array(at(page, x, y)) - 255 * expected).max() <= 1.5, label


def test_a_photo_beside_the_picture_is_the_photo(page):
    merged(page)
    page.select_option("#beside", str(page.evaluate("gmodiff.state.picture.frames.indexOf('sunset_1.jpg')")))
    slide(page, "#split", 0)
    bracket = gmodiff.read_bracket(EXAMPLES)
    frame = next(f for f in bracket.frames if f.name == "sunset_1.jpg")
    for x, y in PLACES:
        assert np.abs(np.array(at(page, x, y)) - frame.encoded[y, x]).max() <= 1


def test_the_pixel_under_the_pointer_is_read_out(page, truth):
    merged(page)
    at(page, 600, 400)
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    text = until(page, "document.querySelector('#readout').textContent")
    x, y = (int(v) for v in text.split("  |  ")[0].split(", "))
    assert f"light {' '.join(f'{v:.3g}' for v in truth.radiance[y, x])}" in text
    assert abs(x - 600) <= 1
    assert "measured in" in text


def test_settings_render_again(page):
    merged(page)
    before = page.evaluate("gmodiff.state.picture.id")
    page.select_option("#base", "reference")
    until(page, f"gmodiff.state.picture.id !== '{before}'")
    assert page.evaluate("gmodiff.state.picture.facts.rendering.base") == "reference"
    assert page.input_value("#base") == "reference"


def test_the_reference_exposures_and_use_of_photos_are_the_users(page):
    drop(page, *EXAMPLES)
    page.wait_for_selector(".bracket button.main")
    page.check("input[aria-label='sunset_3.jpg is the reference']")
    page.uncheck("input[aria-label='Use sunset_2.jpg']")
    evs = page.locator(".thumbs input[type=number]")
    for n, value in enumerate(("-3", "0", "1")):
        evs.nth(n).fill(value)
        evs.nth(n).blur()
    page.click("button:has-text('Merge 2 photos')")
    page.wait_for_selector("#viewer:not([hidden])", timeout=60_000)
    facts = page.evaluate("gmodiff.state.picture.facts")
    assert facts["reference"] == "sunset_3.jpg"
    assert facts["exposure_source"] == "given"
    assert sorted(f["stops"] for f in facts["frames"]) == [-4.0, 0.0]


def test_an_exposure_that_was_emptied_is_asked_for_and_one_set_back_is_the_photos(page):
    drop(page, *EXAMPLES)
    page.wait_for_selector(".bracket button.main")
    field = page.locator(".thumbs input[type=number]").first
    own = field.input_value()
    for value, words in (("", "Fill in the exposure"), ("99", "not a number from -40 to 40")):
        field.fill(value)
        field.blur()
        page.click(".bracket button.main")
        assert words in page.inner_text("#problems")
    field.fill(own)
    field.blur()
    page.click(".bracket button.main")
    page.wait_for_selector("#viewer:not([hidden])", timeout=60_000)
    assert page.evaluate("gmodiff.state.picture.facts.exposure_source") != "given"


def test_photos_that_say_of_themselves_that_they_do_not_belong_together_are_left_over(page, tmp_path):
    from PIL import Image

    for n, path in enumerate(EXAMPLES):  # taken days apart
        image = Image.open(path)
        exif = image.getexif()
        exif.get_ifd(0x8769)[0x9003] = f"2026:05:0{n + 1} 10:00:00"
        image.resize((300, 200)).save(tmp_path / path.name, exif=exif)
    drop(page, *sorted(tmp_path.glob("*.jpg")))
    page.wait_for_selector("#leftovers .thumbs li")
    assert page.locator("#leftovers .thumbs li").count() == 3
    assert page.locator(".bracket button.main").count() == 0


@pytest.mark.parametrize("size", [(1300, 850), (360, 700)])
def test_look_brings_the_picture_into_view_and_marks_its_merge(page, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    merged(page)
    page.click(".bracket button.main")
    until(page, "document.querySelectorAll('li[data-state=done]').length === 2")
    page.evaluate("window.scrollTo(0, 0)")
    page.locator("li[data-job] button:has-text('Look')").last.click()
    settled(page)
    top = page.evaluate("document.querySelector('#canvas').getBoundingClientRect().top")
    assert 0 <= top < size[1] / 2
    marked = page.locator("li[data-job][aria-current]")
    assert marked.get_attribute("data-job") == page.evaluate("gmodiff.state.open")
    assert marked.count() == 1


def test_a_new_merge_begins_with_the_defaults(page):
    merged(page)
    before = page.evaluate("gmodiff.state.picture.id")
    page.select_option("#base", "reference")
    until(page, f"gmodiff.state.picture.id !== '{before}'")
    first = page.evaluate("gmodiff.state.open")
    page.click(".bracket button.main")
    until(page, f"gmodiff.state.open !== '{first}'")
    assert page.evaluate("gmodiff.state.picture.facts.rendering.base") == "tonemap"


def test_ultra_hdr_is_offered_only_of_a_picture_that_has_a_gain_map(page, tmp_path):
    from hdr_samples import picture

    gmodiff.write(picture(120, 160), tmp_path / "phone.jpg")
    data = (tmp_path / "phone.jpg").read_bytes()
    drop(page, ("cut.jpg", data[: data.index(b"\xff\xd8", 100)]))
    page.wait_for_selector("#viewer:not([hidden])")
    assert "gain map" in page.inner_text("#warnings")
    assert page.locator("#files-out a:has-text('Ultra HDR')").count() == 0
    assert page.locator("#files-out a:has-text('EXR')").count() == 1


def test_a_job_is_cancelled(page):
    drop(page, *EXAMPLES)
    page.click(".bracket button.main")
    page.click("li[data-job] button:has-text('Cancel')")
    page.wait_for_selector("li[data-state=cancelled]")
    assert page.is_hidden("#viewer")


def test_a_reload_in_the_middle_of_a_job_loses_nothing(page):
    drop(page, *EXAMPLES)
    page.check("input[aria-label='sunset_2.jpg is the reference']")
    page.click(".bracket button.main")
    page.wait_for_selector("li[data-job]")
    page.reload()
    page.wait_for_selector("li[data-job]")
    assert page.locator(".bracket .thumbs li").count() == 3
    assert page.is_checked("input[aria-label='sunset_2.jpg is the reference']")
    page.wait_for_selector("li[data-state=done]", timeout=60_000)
    page.click("button:has-text('Look')")
    page.wait_for_selector("#viewer:not([hidden])")


def test_two_jobs_wait_for_each_other_and_both_are_done(page):
    drop(page, *EXAMPLES)
    page.click(".bracket button.main")
    page.wait_for_selector("li[data-job]")
    page.click(".bracket button.main")
    until(page, "document.querySelectorAll('li[data-job]').length === 2")
    until(page, "document.querySelectorAll('li[data-state=done]').length === 2")


def test_what_is_no_photo_is_told_and_the_rest_is_taken(page):
    drop(page, *EXAMPLES, ("notes <b>of mine.jpg", b"hello"), ("torn.jpg", EXAMPLES[0].read_bytes()[:3000]))
    page.wait_for_selector(".bracket button.main")
    told = page.inner_text("#problems")
    assert "notes <b>of mine.jpg is not a photo" in told
    assert "torn.jpg" in told
    assert page.locator("#problems b").count() == 0
    assert page.locator(".bracket .thumbs li").count() == 3


def test_exposures_half_filled_in_are_refused_in_words(page, tmp_path):
    from PIL import Image

    for path in EXAMPLES:  # without metadata
        Image.open(path).resize((300, 200)).save(tmp_path / path.name)
    drop(page, *sorted(tmp_path.glob("*.jpg")))
    page.wait_for_selector(".bracket button.main")
    page.locator(".thumbs input[type=number]").first.fill("-2")
    page.locator(".thumbs input[type=number]").first.blur()
    page.click(".bracket button.main")
    page.wait_for_selector("#problems li")
    assert "every photo that is used with a number of stops, or of none" in page.inner_text("#problems")


def test_an_ultra_hdr_file_that_is_dropped_is_checked(page, tmp_path):
    from hdr_samples import picture

    gmodiff.write(picture(120, 160), tmp_path / "phone.jpg")
    drop(page, tmp_path / "phone.jpg")
    page.wait_for_selector("#viewer:not([hidden])")
    facts = page.inner_text("#facts")
    assert "XMP and ISO agree\tyes" in facts
    assert page.is_checked("[name=mode][value=screen]")
    assert page.is_hidden("#settings")


def test_everything_can_be_done_with_the_keyboard(page):
    merged(page)
    before = page.evaluate("({ ...gmodiff.viewer.view })")
    page.focus("#canvas")
    page.keyboard.press("1")
    assert page.evaluate("gmodiff.viewer.view.zoom") == 1
    page.keyboard.press("ArrowRight")
    assert page.evaluate("gmodiff.viewer.view.x") > before["x"]
    until(page, "document.querySelector('#readout').textContent")
    page.keyboard.press("0")
    assert page.evaluate("gmodiff.viewer.view.zoom") == pytest.approx(before["zoom"])
    page.focus("#exposure")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("gmodiff.viewer.state.exposure") == pytest.approx(0.05)
    named = "e.labels?.length || e.ariaLabel || e.textContent.trim()"
    unnamed = page.evaluate(f"[...document.querySelectorAll('input, select, button')].filter((e) => !({named})).map((e) => e.outerHTML)")
    assert unnamed == []


@pytest.mark.parametrize("width", [320, 390, 800])
def test_nothing_sticks_out_of_a_narrow_screen(page, width):
    merged(page)
    page.set_viewport_size({"width": width, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_removing_the_merge_that_is_looked_at_closes_it_and_frees_its_files(page, served):
    merged(page)
    assert list(served.folders[0].glob("merge-*"))
    page.click("li[data-job] button:has-text('Remove')")
    page.wait_for_selector("#viewer", state="hidden")
    until(page, "document.querySelectorAll('li[data-job]').length === 0")
    deadline = time.monotonic() + 30  # the page does not wait for the files to be gone
    while list(served.folders[0].glob("merge-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(served.folders[0].glob("merge-*"))


def test_what_is_being_typed_survives_the_end_of_a_merge(page):
    drop(page, *EXAMPLES)
    page.click(".bracket button.main")
    field = page.locator(".thumbs input[type=number]").first
    field.fill("-7")
    page.wait_for_selector("li[data-state=done]", timeout=60_000)
    assert field.input_value() == "-7"
    page.keyboard.press("Tab")
    assert page.evaluate("[...gmodiff.state.brackets[0].ev.values()]") == [-7]


def test_a_slow_press_on_cancel_counts(page):
    drop(page, *EXAMPLES)
    page.click(".bracket button.main")
    page.wait_for_selector("li[data-state=running]")
    page.click("li[data-job] button:has-text('Cancel')", delay=400)
    page.wait_for_selector("li[data-state=cancelled], li[data-state=done]", timeout=60_000)
    assert page.locator("li[data-state=cancelled]").count() == 1


def test_a_reload_comes_back_to_the_picture(page):
    merged(page)
    for stops in (1.0, 2.0):
        shown = page.evaluate("gmodiff.state.picture.id")
        slide(page, "#most", stops)
        page.evaluate("document.querySelector('#most').dispatchEvent(new Event('change', { bubbles: true }))")
        until(page, f"gmodiff.state.picture.id !== '{shown}'")
    last = page.evaluate("gmodiff.state.picture.id")
    asked = []
    page.on("request", lambda request: asked.append(request.url.split("/api/")[-1]))
    page.reload()
    page.wait_for_selector("#viewer:not([hidden])")
    settled(page)
    page.wait_for_timeout(1000)
    assert page.inner_text("#picture-title") == "sunset_1_hdr"
    assert [a for a in asked if a.startswith("pictures/") and a.count("/") == 1] == [f"pictures/{last}"]  # and no other was opened


def test_what_the_browser_kept_wrongly_does_not_stop_the_page(page):
    drop(page, *EXAMPLES)
    page.wait_for_selector(".bracket button.main")
    for wrong in ("7", '[{"ids": 3}, null]', '[{"ids": ["a", "b", "c"]}]'):
        page.evaluate("([k, v]) => { for (const key of Object.keys(localStorage)) localStorage.setItem(key, v) }", ["", wrong])
        page.reload()
        page.wait_for_selector(".bracket button.main")
        assert page.locator(".bracket .thumbs li").count() == 3
    page.click(".bracket button.main")
    page.wait_for_selector("li[data-state=done]", timeout=60_000)


def test_brackets_told_twice_at_once_are_there_once(page):
    drop(page, *EXAMPLES)
    page.wait_for_selector(".bracket button.main")
    page.evaluate("""() => { document.hasFocus = () => false;
        for (let i = 0; i < 3; i++) window.dispatchEvent(new StorageEvent('storage', { key: 'brackets' })); }""")
    page.wait_for_timeout(1500)
    assert page.locator(".bracket").count() == 1


def test_a_merge_that_ends_while_the_page_is_away_is_opened(page, served):
    drop(page, *EXAMPLES)
    page.click(".bracket button.main")
    page.wait_for_selector("li[data-job]")
    key = page.get_attribute("li[data-job]", "data-job")
    page.goto("about:blank")
    assert served.ended(key)["state"] == "done"
    page.goto(served.url)
    page.wait_for_selector("#viewer:not([hidden])")
    assert page.inner_text("#picture-title") == "sunset_1_hdr"


def test_a_reload_comes_back_to_a_checked_file(page, tmp_path):
    from hdr_samples import picture

    gmodiff.write(picture(120, 160), tmp_path / "phone.jpg")
    drop(page, tmp_path / "phone.jpg")
    page.wait_for_selector("#viewer:not([hidden])")
    page.reload()
    page.wait_for_selector("#viewer:not([hidden])")
    assert "XMP and ISO agree" in page.inner_text("#facts")


def test_a_checked_file_is_dropped_by_the_server_when_it_is_left(page, served):
    before = set(served.folders[0].glob("check-*"))
    merged(page)
    with page.expect_download(timeout=60_000) as waiting:
        page.click("#files-out a:has-text('Ultra HDR')")
    page.set_input_files("#check", {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": waiting.value.path().read_bytes()})
    until(page, "document.querySelector('#picture-title').textContent === 'mine'")
    assert set(served.folders[0].glob("check-*")) > before
    page.click("button:has-text('Look')")
    until(page, "document.querySelector('#picture-title').textContent === 'sunset_1_hdr'")
    page.wait_for_timeout(500)
    assert set(served.folders[0].glob("check-*")) <= before


def test_sidecars_are_passed_over_quietly_and_impossible_exposures_told(page):
    drop(page, *EXAMPLES, ("IMG.xmp", b"<x/>"), ("Thumbs.db", b"x"))
    page.wait_for_selector(".bracket button.main")
    until(page, "document.querySelector('#says').textContent.includes('2 other files passed over')")
    assert page.is_hidden("#problems")
    field = page.locator(".thumbs input[type=number]").first
    field.fill("99")
    field.blur()
    assert "sunset_1.jpg: the exposure (EV) must be a number from -40 to 40" in page.inner_text("#problems")


def test_large_text_does_not_stick_out(page):
    merged(page)
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate("document.documentElement.style.fontSize = '200%'")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
