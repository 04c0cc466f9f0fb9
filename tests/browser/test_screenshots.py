"""The pictures of docs/dashboard, taken of a real demo run. `make screenshots` writes them; the ordinary run leaves them alone.

DEMO_DATA names the data folder of a `hotrefresh demo --fast --keep` that was run before; without it one is run here.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser import demo_run
from tests.browser.conftest import Served
from tests.browser.window import PHONE, PICTURES
from tests.engine.dashboard_server import dashboard_url

pytestmark = [pytest.mark.screenshots, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "dashboard"
MOST_BYTES = 250_000
MOST_HEIGHT = 2_400
COLOURS = 192


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A dashboard on the demo's ledger, its gallery half-way through one more refresh; and that rollout's id."""
    named = os.environ.get("DEMO_DATA")
    data = Path(named) if named else tmp_path_factory.mktemp("demo")
    if not (data / "demo").is_dir():
        command = [str(Path(sys.executable).with_name("hotrefresh")), "--data-dir", str(data)]
        report = ["--report", str(tmp_path_factory.mktemp("report"))]
        subprocess.run([*command, "demo", "--fast", "--keep", *report], check=True)
    with demo_run.half_way(data) as (context, rollout_id), dashboard_url(context) as url:
        yield Served(url, context), rollout_id


def take(seen, name, height=MOST_HEIGHT):
    """Write the page, down to `height`, as docs/dashboard/NAME.png."""
    assert all(each["width"] > 0 for each in seen.script(PICTURES))
    # The status of the updates changes under the camera; the page is still when nothing moves any more.
    seen.script("() => document.fonts.ready.then(() => new Promise(done => requestAnimationFrame(done)))")
    whole = Image.open(io.BytesIO(seen.page.screenshot(full_page=True, animations="disabled")))
    picture = whole.convert("RGB").crop((0, 0, whole.width, min(whole.height, height)))
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{name}.png"
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    assert 10_000 < file.stat().st_size < MOST_BYTES, (file, file.stat().st_size)


def test_each_page_for_the_docs(look, demo):
    served, rollout_id = demo
    seen = look(served)
    flips = f"/rollouts/{rollout_id}/flips?kind=negative&reference=old_system&k=1&fate=open"
    seen.go("/")
    expect(seen.page.locator("[data-gallery=glyphs] .pill").first).to_have_text("paused")
    take(seen, "rollouts")
    seen.go(f"/rollouts/{rollout_id}")
    expect(seen.page.locator("polyline.measured").first).to_be_visible()
    take(seen, "rollout", 3_000)
    seen.go(flips)
    assert seen.page.locator("li.flip").count() > 5
    take(seen, "flips", 1_400)
    seen.page.locator(".cell.right a").first.click()
    expect(seen.page.locator("tr.current")).to_be_visible()
    take(seen, "item")
    take(seen.go("/serving"), "serving")
    take(seen.go(f"/certificates?set=glyphs%2F{demo_run.QUERIES}"), "certificates")
    take(seen.go(f"/rollouts/{rollout_id}/rollback"), "confirmation")
    seen.page.emulate_media(color_scheme="dark")
    take(seen.go(f"/rollouts/{rollout_id}"), "rollout-dark", 1_800)
    seen.page.emulate_media(color_scheme="light")
    seen.page.set_viewport_size(PHONE)
    take(seen.go(f"/rollouts/{rollout_id}"), "rollout-phone", 2_000)
