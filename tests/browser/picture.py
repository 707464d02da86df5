"""The picture in docs/feedback.md: `python -m tests.browser.picture docs/feedback.png`.

Images of the embedded generator `shapes_tdm`, rolled out and judged on the page by keys in headless Chromium.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tdm_r1 import presets
from tdm_r1.label.server import opened
from tdm_r1.runtime.execute import execute
from tdm_r1.runtime.feedback_votes import open_election
from tdm_r1.runtime.layout import Task
from tdm_r1.runtime.run import create_run
from tests.chromium import chromium

CONFIG = {
    "rollout.groups": 4,
    "rollout.group_size": 12,
    "rollout.shards": 1,
    "distill.warmup": 0,
    "reward.scorers": {"shapes": {"weight": 0}, "feedback": {}},
}


def main(out: Path) -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        root = f"{folder}/shapes"
        run = create_run(root, presets.resolve("shapes_cpu", CONFIG))
        for task in (Task("encode_prompts"), Task("distill_base"), Task("rollout", 1)):
            execute(run, task)
        with opened(open_election(root, 1, ""), ["ann"]) as server, chromium(1200, 780) as browser:
            browser.get(server.addresses()["ann"])
            wait = WebDriverWait(browser, 60)
            wait.until(lambda driver: driver.execute_script("return document.body.dataset.ready === 'true'"))
            for key in ("l", "d", "l", "l", "d", Keys.ARROW_RIGHT, "l"):
                browser.switch_to.active_element.send_keys(key)
            wait.until(lambda driver: driver.execute_script("return Object.keys(state.likes).length === 6"))
            wait.until(lambda driver: driver.execute_script("return document.querySelector('img').naturalWidth > 0"))
            browser.execute_script(f"document.getElementById('about').textContent = {ABOUT!r}")
            browser.save_screenshot(str(out))


ABOUT = "runs/people, iteration 1; you are ann"
"""Instead of a temporary folder's name."""

if __name__ == "__main__":
    main(Path(sys.argv[1]))
