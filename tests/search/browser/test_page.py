"""The search page in a real browser: type, drop, click, filter, a phone's width."""

import base64
import io
import json

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait


class Page:
    """The page as a person uses it."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address
        driver.get(address)
        self.wait(lambda: "60 rows" in self.status)

    def wait(self, done):
        WebDriverWait(self.driver, 20).until(lambda _: done())

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    @property
    def status(self) -> str:
        return self.find("#status").text

    @property
    def captions(self) -> list[str]:
        script = "return [...document.querySelectorAll('figcaption p')].map(p => p.textContent)"
        return self.driver.execute_script(script)

    def searched(self, action):
        """Do something, and wait for the results."""
        self.driver.execute_script("document.getElementById('status').textContent = 'before'")
        action()
        self.wait(lambda: " ms" in self.status)

    def type(self, text):
        self.searched(lambda: self.find("#text").send_keys(text, Keys.ENTER))

    def loaded(self):
        """Wait for the pictures that are in the window."""
        script = (
            "return [...document.querySelectorAll('#grid img')].filter(i => "
            "i.getBoundingClientRect().top < innerHeight).every(i => i.complete && i.naturalWidth)"
        )
        self.wait(lambda: self.driver.execute_script(script))

    def shot(self, path):
        self.loaded()
        self.driver.save_screenshot(str(path))


@pytest.fixture
def page(browser, address):
    return Page(browser, address)


def test_typing_a_text_shows_its_pictures_with_scores(page, screenshots):
    page.type("a red thing")
    assert len(page.captions) == 40
    assert all("red" in caption for caption in page.captions[:20])
    scores = [float(one.text) for one in page.all("figcaption strong")]
    assert scores == sorted(scores, reverse=True)
    page.shot(screenshots / "typed.png")


def test_more_shows_more(page):
    page.type("a red thing")
    page.searched(page.find("#more").click)
    assert len(page.captions) == 60


def test_dropping_a_picture_searches_for_it(page, screenshots):
    file = io.BytesIO()
    Image.new("RGB", (30, 30), (40, 60, 230)).save(file, "PNG")
    drop = """
    const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "blue.png", {type: "image/png"}));
    document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    """
    data = base64.b64encode(file.getvalue()).decode()
    page.searched(lambda: page.driver.execute_script(drop, data))
    assert all("blue" in caption for caption in page.captions[:20])
    page.shot(screenshots / "dropped.png")


def test_a_text_and_a_picture_are_weighted(page, tmp_path, screenshots):
    Image.new("RGB", (30, 30), (40, 60, 230)).save(tmp_path / "blue.png")
    page.type("red")
    page.searched(lambda: page.find("#file").send_keys(str(tmp_path / "blue.png")))
    assert len(page.all("#parts .chip")) == 2
    slide = (
        "const s = document.querySelectorAll('#parts input')[0]; s.value = arguments[0];"
        "s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change'));"
    )
    page.searched(lambda: page.driver.execute_script(slide, 0.1))
    assert all("blue" in caption for caption in page.captions[:20])
    page.searched(lambda: page.driver.execute_script(slide, -1))
    page.shot(screenshots / "weighted.png")
    page.searched(page.all("#parts .chip button")[1].click)
    assert not any("red" in caption for caption in page.captions[:40])


def test_clicking_a_picture_shows_more_like_it(page):
    page.type("green")
    first = page.captions[4]
    page.loaded()
    page.searched(page.all("figure > button")[4].click)
    assert page.captions[0] == first
    page.searched(page.all("figcaption button")[3].click)
    assert len(page.all("#parts .chip")) == 2


def test_filters_narrow_what_is_found(page, screenshots):
    page.type("blue")
    page.find("#filters summary").click()
    Select(page.find("#column")).select_by_value("label")
    Select(page.find("#operator")).select_by_value("=")
    page.searched(lambda: page.find("#value").send_keys("2", Keys.ENTER))
    assert len(page.captions) == 15
    assert all(int(caption.split()[-1]) % 4 == 2 for caption in page.captions)
    page.shot(screenshots / "filtered.png")
    page.searched(page.find("#conditions button").click)
    assert len(page.captions) == 40


def test_a_wrong_value_is_said(page):
    page.type("blue")
    page.find("#filters summary").click()
    Select(page.find("#column")).select_by_value("label")
    page.find("#value").send_keys("two", Keys.ENTER)
    page.wait(lambda: "cannot be compared" in page.status)


def test_a_phone_shows_all_in_its_width(page, screenshots):
    phone = {"width": 375, "height": 720, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page.type("red")
        page.find("#filters summary").click()
        script = "return document.documentElement.scrollWidth"
        assert page.driver.execute_script(script) <= 375
        columns = page.driver.execute_script(
            "return getComputedStyle(document.getElementById('grid')).gridTemplateColumns"
        )
        assert len(columns.split()) == 2
        page.shot(screenshots / "phone.png")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_is_asked_for_outside_and_nothing_is_reported(page):
    for kind in ("performance", "browser"):  # of the tests before
        page.driver.get_log(kind)
    page.driver.refresh()
    page.wait(lambda: "60 rows" in page.status)
    page.type("red")
    page.loaded()
    sent = [json.loads(line["message"])["message"] for line in page.driver.get_log("performance")]
    urls = [
        one["params"]["request"]["url"]
        for one in sent
        if one["method"] == "Network.requestWillBeSent"
    ]
    own = (page.address, "data:", "blob:")
    assert urls and all(url.startswith(own) for url in urls)
    assert [line for line in page.driver.get_log("browser") if line["level"] == "SEVERE"] == []
