"""A window of the browser that keeps everything that goes wrong in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Request, Response, WebError

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
# Every picture of the page, loaded and decoded whether it was scrolled to or not: its own width, and what is said of it.
PICTURES = """() => Promise.all([...document.images].map(async image => {
  image.loading = 'eager';
  await image.decode().catch(() => null);
  return { src: image.src, width: image.naturalWidth, alt: image.alt };
}))"""


class Window:
    """A page with cookies and storage of its own.

    Attributes:
        url: the dashboard that it looks at; a path is one of its paths.
        page: Playwright's page.
        status: the status of the last page that was opened.
        faults: console errors and warnings (a breach of the content security policy is one), exceptions, dialogs, answers of
            400 and above, requests that failed, and requests to anywhere else.
    """

    def __init__(
        self, browser: Browser, url: str, *, viewport: dict[str, int] | None = None, **options: Any
    ) -> None:
        self.url, self.status = url, 0
        self._expected: list[str] = []
        self.faults: list[str] = []
        self._context = browser.new_context(viewport=viewport or DESK, **options)
        self._context.set_default_timeout(60_000)  # of a busy machine; who waits goes on at once
        self._context.on("console", self._said)
        self._context.on("weberror", self._thrown)
        self._context.on("dialog", self._asked)
        self._context.on("request", self._requested)
        self._context.on("requestfailed", self._failed)
        self._context.on("response", self._answered)
        self.page = self._context.new_page()

    def expect_fault(self, pattern: str) -> None:
        """A fault that holds this regular expression is what the test is about."""
        self._expected.append(pattern)

    def unexpected(self) -> list[str]:
        """The faults that no test expected."""
        return [fault for fault in self.faults if not any(re.search(each, fault) for each in self._expected)]

    def turn_to(self, url: str) -> None:
        """Look at another dashboard, as if newly opened: no cookie, no fault and no expectation is left."""
        self.page.goto("about:blank")
        self.page.set_viewport_size(DESK)  # type: ignore[arg-type]
        self.page.emulate_media(color_scheme="light")
        self._context.clear_cookies()
        self.url, self.status = url, 0
        self._expected.clear()
        self.faults.clear()

    def close(self) -> None:
        """Close it; what is under way then is no fault."""
        self._context.close()

    def go(self, path: str) -> Window:
        """Open a path, with everything that it loads."""
        answer = self.page.goto(self.url + path, wait_until="load")
        assert answer is not None
        self.status = answer.status
        return self

    def script(self, source: str) -> Any:
        """What a function of JavaScript returns in the page."""
        return self.page.evaluate(source)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"console: {message.text}")

    def _thrown(self, error: WebError) -> None:
        self.faults.append(f"exception: {error.error}")

    def _asked(self, dialog: Dialog) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _requested(self, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", "data:", "about:")):
            self.faults.append(f"request to elsewhere: {request.url}")

    def _failed(self, request: Request) -> None:
        # A page that is left takes its own requests with it.
        if request.failure != "net::ERR_ABORTED":
            self.faults.append(f"request failed: {request.url}: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.faults.append(f"answer {response.status}: {response.url}")
