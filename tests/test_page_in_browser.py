"""The page to draw on, in Debian's Chromium: what a person does."""

import json
import shutil
import threading
import time

import keras
import numpy as np
import pytest
from PIL import Image

import capsulenet
from capsnet import explore, uses
from capsnet.explore import Shown
from capsnet.page_server import PageServer
from capsnet.predict import predict

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
pytestmark = pytest.mark.slow

SEVEN = [(0.25, 0.25), (0.5, 0.24), (0.75, 0.25), (0.6, 0.5), (0.45, 0.85)]
ONE = [(0.5, 0.15), (0.5, 0.5), (0.5, 0.85)]


@pytest.fixture(scope="module")
def browser():
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}, of Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


class Page:
    """A page in the browser, as a person uses it."""

    def __init__(self, driver, url):
        self.driver = driver
        driver.get_log("browser"), driver.get_log("performance")  # of earlier pages
        driver.get(url)
        self.wait(lambda: self.get("parts").is_displayed())
        self.settle()

    def get(self, name):
        return self.driver.find_element("id", name)

    def do(self, script, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def settle(self):
        """Until all that is shown is of the newest drawing."""
        self.wait(lambda: self.do("document.body.dataset.waiting") == "0")

    def wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.05)

    def press(self, name):
        self.get(name).click()
        self.settle()

    def draw(self, name, points):
        """A stroke of the mouse, its button down."""
        pad = self.get(name)
        self.do("arguments[0].scrollIntoView({block: 'center'})", pad)
        size = pad.size["width"]
        actions = webdriver.ActionChains(self.driver, duration=30)
        for i, (x, y) in enumerate(points):
            place = round((x - 0.5) * size), round((y - 0.5) * size)
            actions.move_to_element_with_offset(pad, *place)
            if i == 0:
                actions.click_and_hold()
        actions.release().perform()
        self.settle()

    def pixels(self, name):
        """The pixels of a canvas, (height, width, 4)."""
        values = self.do(
            "(({width, height}, context) => [height, width, "
            "...context.getImageData(0, 0, width, height).data])"
            "(arguments[0], arguments[0].getContext('2d'))",
            self.get(name),
        )
        return np.array(values[2:]).reshape(*values[:2], 4)

    def reads(self, text):
        self.wait(lambda: self.get("answer").text == text)

    def errors(self):
        return [e for e in self.driver.get_log("browser") if e["level"] == "SEVERE"]

    def requests(self):
        """The addresses that were asked for anything."""
        messages = [
            json.loads(entry["message"])["message"]
            for entry in self.driver.get_log("performance")
        ]
        return {
            m["params"]["request"]["url"]
            for m in messages
            if m["method"] == "Network.requestWillBeSent"
        }


@pytest.fixture
def open_page(browser):
    """Serves a page and opens it; at the end, nobody else was asked for anything."""
    opened = []

    def open_it(files):
        server = PageServer(files, 0)
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        opened.append(server)
        opened.append(Page(browser, server.url))
        return opened[-1]

    yield open_it
    server, page = opened
    requests = page.requests()
    page.driver.get("about:blank")
    server.shutdown()
    server.server_close()
    assert page.errors() == []
    assert len(requests) > 10
    assert {u for u in requests if not u.startswith((server.url, "data:"))} == set()


@pytest.fixture(scope="module")
def digits_page(published, mnist):
    images = tuple(part[:200] for part in mnist.test)
    return explore.build_page(Shown(published, uses.MNIST_INFO, "mnist_v4.h5", images))


def test_a_drawn_seven_is_a_seven(open_page, digits_page):
    page = open_page(digits_page)
    page.press("clear")
    page.reads("Nothing to read")
    assert page.get("hint").is_displayed()
    page.draw("pad", SEVEN)
    page.reads("7")
    assert not page.get("hint").is_displayed()
    bars = page.driver.find_elements("css selector", "#bars button")
    assert len(bars) == 10
    assert bars[7].get_attribute("aria-label").startswith("7: length 0.")
    assert bars[7].get_attribute("aria-label").endswith(", named")
    # laid out as MNIST's, and drawn again
    seen = page.pixels("seen")[..., 0]
    assert seen.shape == (28, 28) and not seen[:4].any() and seen.max() == 255
    drawn = page.pixels("reconstruction")[..., 0]
    assert np.corrcoef(seen.ravel(), drawn.ravel())[0, 1] > 0.7


def test_undo_takes_a_stroke_back_and_clear_all(open_page, digits_page):
    page = open_page(digits_page)
    page.press("clear")
    page.draw("pad", SEVEN)
    page.reads("7")
    page.draw("pad", [(0.1, 0.9), (0.9, 0.9), (0.9, 0.1), (0.1, 0.1), (0.1, 0.9)])
    page.wait(lambda: page.get("answer").text != "7")
    page.press("undo")
    page.reads("7")
    page.press("clear")
    page.wait(lambda: not page.pixels("seen")[..., :3].any())
    assert not page.pixels("pad")[..., 3].any()
    assert not page.get("undo").is_enabled()


def test_any_class_can_be_decoded(open_page, digits_page):
    page = open_page(digits_page)
    page.reads("0")
    before = page.pixels("reconstruction")
    page.driver.find_elements("css selector", "#bars button")[3].click()
    page.wait(lambda: page.get("drawn-classes").text == "3")
    assert (page.pixels("reconstruction") != before).any()
    assert page.do("document.getElementById('class').value") == "3"
    page.press("follow")
    page.wait(lambda: page.get("drawn-classes").text == "0")
    np.testing.assert_array_equal(page.pixels("reconstruction"), before)


def test_sliders_change_the_reconstruction(open_page, digits_page):
    page = open_page(digits_page)
    page.reads("0")
    sliders = page.driver.find_elements("css selector", "#sliders input")
    assert len(sliders) == 16
    page.wait(lambda: page.pixels("moved")[..., 0].any())
    before = page.pixels("moved")
    np.testing.assert_array_equal(before, page.pixels("reconstruction"))
    sliders[4].send_keys(*[webdriver.Keys.ARROW_RIGHT] * 20)
    page.wait(lambda: (page.pixels("moved") != before).mean() > 0.05)
    assert sliders[4].get_attribute("value") == "0.1"
    webdriver.ActionChains(page.driver).double_click(sliders[4]).perform()
    page.wait(lambda: (page.pixels("moved") == before).all())
    assert sliders[4].get_attribute("value") == "0"
    # the middle of each strip is the drawing as it is, the ends are others
    frames = page.driver.find_elements("css selector", "#sliders canvas")
    assert len(frames) == 16 * 5
    page.wait(lambda: page.do("arguments[0].width", frames[-1]) == 28)


def test_the_routing_is_watched_round_by_round(open_page, digits_page):
    page = open_page(digits_page)
    page.reads("0")
    found = []
    for step in page.driver.find_elements("css selector", "#rounds label"):
        step.click()
        length = float(page.get("round-length").text)
        votes = float(page.get("round-votes").text)
        found.append((length, votes, page.pixels("votes")[..., 0].sum()))
    assert len(found) == 3
    assert found == sorted(found)  # longer, more votes, brighter
    assert len(page.driver.find_elements("css selector", "#small-maps canvas")) == 10
    page.get("votes").send_keys(webdriver.Keys.ARROW_DOWN)
    assert page.get("lens").is_displayed()
    assert page.get("place").text.startswith("Row 5, column 4: ")
    # the field of a place is 17 pixels of 28
    lens, picture = page.get("lens").size, page.get("votes").size
    assert lens["width"] / picture["width"] == pytest.approx(17 / 28, abs=0.02)


def test_test_images_are_shown_as_they_are(open_page, digits_page):
    page = open_page(digits_page)
    page.reads("0")
    strip = page.driver.find_elements("css selector", "#strip-right button")
    assert [button.text for button in strip] == [*"0123456789"]
    strip[6].click()
    page.reads("6")
    manifest = json.loads(digits_page["model.json"])
    classes = [image["class"] for image in manifest["test_images"]]
    pixels = np.frombuffer(digits_page["test_images.bin"], "uint8")
    expected = pixels.reshape(-1, 28, 28)[classes.index("6")]
    np.testing.assert_array_equal(page.pixels("seen")[..., 0], expected)


def test_the_keyboard_reaches_all_controls(open_page, digits_page):
    page = open_page(digits_page)
    page.reads("0")
    page.press("clear")
    page.draw("pad", SEVEN)  # so that no button is disabled
    page.reads("7")
    controls = page.do(
        "[...document.querySelectorAll('a, button, select, input, [tabindex]')]"
        ".filter((e) => e.checkVisibility() && !e.disabled && (e.type !== 'radio' || "
        "e.checked)).map((e, i) => { e.dataset.number = i; return i; })"
    )
    assert len(controls) > 50
    page.do("document.querySelector('h1').setAttribute('tabindex', -1)")
    page.do("document.querySelector('h1').focus()")
    reached = set()
    for _ in range(len(controls) + 2):
        webdriver.ActionChains(page.driver).send_keys(webdriver.Keys.TAB).perform()
        reached.add(page.do("document.activeElement.dataset.number"))
    assert set(map(str, controls)) <= reached
    # and each says what it is
    nameless = page.do(
        "[...document.querySelectorAll('button, select, input:not([hidden]), canvas')]"
        ".filter((e) => e.checkVisibility() && !e.closest('[aria-hidden]') && "
        "!(e.ariaLabel || e.textContent.trim() || e.labels?.length || "
        "e.closest('button'))).map((e) => e.outerHTML)"
    )
    assert nameless == []


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_width_needs_scrolling_sideways(open_page, digits_page, width):
    page = open_page(digits_page)
    size = {
        "width": width,
        "height": 800,
        "deviceScaleFactor": 1,
        "mobile": width < 700,
    }
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.do("document.documentElement.scrollWidth") <= width
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_pictures_take_the_place_of_drawing_for_other_models(open_page, tmp_path):
    keras.utils.set_random_seed(0)
    _, model, _ = capsulenet.CapsNet((20, 22, 3), 3, 2)
    info = {**uses.MNIST_INFO, "input_shape": [20, 22, 3], "digit_box": None}
    names = ["<b>apple</b>", "banana", "cherry"]
    info |= {"class_names": names, "dataset": "fruit"}
    page = open_page(explore.build_page(Shown(model, info, "fruit.h5")))
    assert not page.get("brush").is_displayed()
    assert "Load a picture" in page.get("hint").text
    assert "20 \u00d7 22 pixels in colour" in page.get("model").text
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 22, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "fruit.png")
    page.get("picture-file").send_keys(str(tmp_path / "fruit.png"))
    page.wait(lambda: np.array_equal(page.pixels("seen")[..., :3], pixels))
    page.settle()
    bars = page.driver.find_elements("css selector", ".bar-name")
    assert [bar.text for bar in bars] == names  # as text, whatever is in them
    assert len(page.driver.find_elements("css selector", "#rounds label")) == 2
    assert not page.get("two-digits").is_displayed()
    (tmp_path / "no_picture.png").write_text("text")
    page.get("picture-file").send_keys(str(tmp_path / "no_picture.png"))
    page.reads("This file is not a picture that the browser can read.")


def test_several_classes_in_a_picture(open_page, tmp_path):
    keras.utils.set_random_seed(0)
    shape, names = (20, 22, 3), ["car", "road", "tree"]
    _, model, _ = capsulenet.CapsNet(shape, 3, multi_label=True)
    digits = model.get_layer("digitcaps")
    scales = np.array([100.0, 0.1, 100.0]).reshape(3, 1, 1, 1)
    digits.W.assign(scales * keras.ops.convert_to_numpy(digits.W))
    info = {**uses.MNIST_INFO, "input_shape": [*shape], "digit_box": None}
    info |= {"class_names": names, "dataset": "street", "multi_label": True}
    page = open_page(explore.build_page(Shown(model, info, "street.h5")))
    pixels = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    lengths, drawn = predict(model, [pixels[None] / np.float32(255)])
    order = np.argsort(-lengths[0])
    expected = [names[i] for i in order if lengths[0, i] > 0.5]
    assert sorted(expected) == ["car", "tree"]
    Image.fromarray(pixels).save(tmp_path / "street.png")
    page.get("picture-file").send_keys(str(tmp_path / "street.png"))
    page.reads(" and ".join(expected))
    assert page.get("drawn-classes").text == " and ".join(expected)
    seen = page.pixels("reconstruction")[..., :3] / 255
    assert np.abs(seen - drawn[0]).max() < 0.01  # drawn from both capsules at once


@pytest.mark.parametrize("is_second", [False, True])
def test_two_layers_give_two_digits(is_second, open_page, published, mnist):
    shown = [uses.find_two_digits(capsulenet.CapsNet, uses.MNIST_INFO)]
    if is_second:
        shown.insert(0, Shown(published, uses.MNIST_INFO, "mnist_v4.h5"))
    page = open_page(explore.build_page(*shown))
    if is_second:  # asked for by nobody who does not get there
        assert not page.get("pair").is_displayed()
        assert page.get("pair-model").text == ""
        page.do("arguments[0].scrollIntoView()", page.get("two-digits"))
        page.wait(
            lambda: page.get("pair-model").text.startswith("Part 4: multimnist.h5:")
        )
    page.wait(lambda: " and " in page.get("pair-answer").text)
    assert not page.get("pair-loading").is_displayed()
    page.press("pair-random")
    page.press("pair-clear")
    page.wait(lambda: not page.pixels("pair-seen")[..., :3].any())
    assert page.get("pair-answer").text == "Nothing to read"
    page.draw("pair-pad", SEVEN)
    page.wait(lambda: "7" in page.get("pair-answer").text)
    one = page.pixels("pair-seen")[..., 0].sum()
    page.driver.find_elements("css selector", ".segments .green")[0].click()
    page.draw("pair-pad", ONE)
    page.wait(lambda: page.pixels("pair-seen")[..., 0].sum() > 1.1 * one)
    page.wait(lambda: "7" in page.get("pair-answer").text)
    first, second = (page.get(f"pair-{name}-name").text for name in ("first", "second"))
    assert page.get("pair-answer").text == f"{first[0]} and {second[0]}"
    assert first[0] == "7" != second[0]  # in the colour in which it was drawn
    red, green = (page.pixels(f"pair-{name}")[..., :3] for name in ("first", "second"))
    assert red[..., 0].max() > 200 and red[..., 0].sum() > 2 * red[..., 1].sum()
    assert green[..., 1].max() > 60 and green[..., 1].sum() > 2 * green[..., 0].sum()
    both = page.pixels("pair-both")[..., :3]
    np.testing.assert_allclose(both, np.minimum(red + green, 255), atol=2)
