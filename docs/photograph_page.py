"""Takes the pictures of the page to draw on: docs/explore*.png.

    python -m docs.photograph_page

Opens the page with the published models in Chromium and draws a 5 on it. Needs what is
in requirements-dev.txt, and Debian's chromium, chromium-driver and fonts-inter.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import base64
import io
import os
import shutil
import threading
import time

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from capsnet import flags, run_folder
from capsnet.explore import LOOKED_AT, Shown, build_page, load_test_images
from capsnet.options import Training
from capsnet.page_server import PageServer
from capsnet.uses import MNIST_INFO, find_two_digits, open_model
from capsulenet import CapsNet

FOLDER = os.path.dirname(os.path.abspath(__file__))
WEIGHTS = os.path.join(FOLDER, os.pardir, flags.PRETRAINED)
WIDTH, PHONE = 1280, 390  # pixels of CSS
MARGIN = 28
ANGLES = np.linspace(-2.4, 2.5, 60)
# A 5 on a pad from 0 to 1, without the pen leaving it.
FIVE = [(0.72, 0.2), (0.36, 0.21), (0.31, 0.5)]
FIVE += [(0.48 + 0.22 * np.cos(a), 0.62 + 0.21 * np.sin(a)) for a in ANGLES]


def open_browser() -> webdriver.Chrome:
    """Chromium without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(flag)
    return webdriver.Chrome(
        options, webdriver.ChromeService(shutil.which("chromedriver"))
    )


def settle(driver: webdriver.Chrome) -> None:
    """Waits until all that is shown is of the newest drawing."""
    script = "return document.body.dataset.waiting"
    while driver.execute_script(script) != "0":
        time.sleep(0.05)
    time.sleep(1)  # in which bars grow


def set_width(driver: webdriver.Chrome, width: int, scale: float) -> None:
    """Makes the window as wide as a screen, with so many pixels for each of CSS."""
    size = {"width": width, "height": 900, "deviceScaleFactor": scale, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    settle(driver)


def draw(driver: webdriver.Chrome, points: list[tuple[float, float]]) -> None:
    """Draws a stroke on the pad."""
    pad = driver.find_element("id", "pad")
    actions = webdriver.ActionChains(driver, duration=20)
    for i, (x, y) in enumerate(points):
        place = (round((part - 0.5) * pad.size["width"]) for part in (x, y))
        actions.move_to_element_with_offset(pad, *place)
        if i == 0:
            actions.click_and_hold()
    actions.release().perform()
    settle(driver)


def overlay_digits(driver: webdriver.Chrome) -> None:
    """Puts two test digits over each other, in the part that takes them apart."""
    part = driver.find_element("id", "two-digits")
    driver.execute_script("arguments[0].scrollIntoView()", part)
    button = driver.find_element("id", "pair-random")
    WebDriverWait(driver, 60).until(lambda _: button.is_displayed())
    driver.execute_script("Math.random = () => 0.6")  # the same ones each time
    button.click()
    settle(driver)


def photograph(driver: webdriver.Chrome, first: str, last: str, name: str) -> None:
    """Writes a picture of the page, over its whole width.

    Args:
        driver: Its browser.
        first: Selector of the element at the top of the picture.
        last: Selector of the element at its end.
        name: Of the file in this folder.
    """
    top, bottom, width = driver.execute_script(
        "const box = (name) => document.querySelector(name).getBoundingClientRect();"
        "return [box(arguments[0]).top + scrollY, box(arguments[1]).bottom + scrollY,"
        " innerWidth]",
        first,
        last,
    )
    top = max(0, top - MARGIN)
    height = bottom + MARGIN - top
    clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
    taken = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
    )
    picture = Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")
    path = os.path.join(FOLDER, name)
    with run_folder.replace_file(path) as temporary:
        picture.save(temporary, optimize=True)
    print(f"Wrote {path}, {os.path.getsize(path) / 1e3:.0f} kB")


def main() -> None:
    model, _ = open_model(CapsNet, WEIGHTS, MNIST_INFO, Training())
    title = os.path.basename(WEIGHTS)
    shown = Shown(model, MNIST_INFO, title, load_test_images(MNIST_INFO, LOOKED_AT))
    files = build_page(shown, find_two_digits(CapsNet, MNIST_INFO))
    with PageServer(files, 0) as server:
        threading.Thread(target=server.serve_forever).start()
        driver = open_browser()
        try:
            driver.get(server.url)
            set_width(driver, WIDTH, 1)
            driver.find_element("id", "clear").click()
            draw(driver, FIVE)
            photograph(driver, "body", "#strip-wrong", "explore.png")
            photograph(driver, "#move-title", "#reset", "explore_sliders.png")
            photograph(driver, "#routing-title", "#small-maps", "explore_routing.png")
            overlay_digits(driver)
            photograph(driver, "#pair-title", "#pair", "explore_two_digits.png")
            set_width(driver, PHONE, 1.5)
            photograph(driver, "body", "#seen", "explore_phone.png")
        finally:
            driver.quit()
            server.shutdown()


if __name__ == "__main__":
    main()
