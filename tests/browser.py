"""A headless Chromium for the tests of what people see in one; without it they skip."""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
  "--headless",
  "--no-sandbox",  # Chromium refuses to run as root with it, as CI does
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--window-size=1300,1000",
)


@contextlib.contextmanager
def open_browser(downloads: Any = None) -> Iterator[Any]:
  """Opens a browser of its own, driven by selenium, with a fresh profile.

  Args:
    downloads: the folder that downloads go to.
  """
  webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
  chromium = next(filter(None, map(shutil.which, _NAMES)), None)
  driver = shutil.which("chromedriver")
  if chromium is None or driver is None:
    pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
  from selenium.webdriver.chrome.service import Service

  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
      options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, Service(driver))
    try:
      if downloads is not None:
        where = {"behavior": "allow", "downloadPath": str(downloads)}
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", where)
      yield browser
    finally:
      browser.quit()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
  """Waits until `condition()` is true and returns it; fails after so many seconds."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if value := condition():
      return value
    time.sleep(0.1)
  raise AssertionError(f"waited {seconds} s for {what}")


def requests_of(browser: Any) -> set[str]:
  """Everything that pages have asked for since the last call, but for the browser's own pages."""
  messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
  urls = {
    message["params"]["request"]["url"]
    for message in messages
    if message["method"] == "Network.requestWillBeSent"
  }
  return {url for url in urls if not url.startswith(("chrome:", "data:", "blob:"))}


def errors_of(browser: Any) -> list[str]:
  """What the page's scripts have complained about since the last call."""
  return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
