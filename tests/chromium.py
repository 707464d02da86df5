"""Headless Chromium from Debian's archive, driven by its own chromedriver."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

Browser = Chrome


@contextmanager
def chromium(width: int = 1200, height: int = 800) -> Iterator[Browser]:
    """A browser that is closed at the end. In a container root has no sandbox of its own."""
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", f"--window-size={width},{height}", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService("/usr/bin/chromedriver"))
    driver.set_page_load_timeout(120)
    driver.set_script_timeout(120)
    try:
        yield driver
    finally:
        driver.quit()
