"""What a person with a keyboard does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

MOST_TABS = 120

# Everything that takes the focus and can be seen, in the order of the document.
CONTROLS = """() => [...document.querySelectorAll(
    'a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex="0"]'
  )].filter(each => each.checkVisibility({ visibilityProperty: true }) && !each.disabled)"""


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until the element has the focus."""
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement?.matches(selector) ?? false", selector):
            return
    raise AssertionError(f"Tab does not reach {selector}")


def stops(page: Page) -> list[dict[str, Any]]:
    """What Tab comes to, from the top of the page to its end.

    Each with its place among the controls (-1: none of them), its markup, whether its focus is drawn, and what covers it.
    """
    page.evaluate(f"() => {{ window.controls = ({CONTROLS})(); }}")
    # A page may begin in a field of its form; from there Tab would leave out what stands before it.
    page.evaluate(
        """() => {
          const top = document.createElement('div');
          top.tabIndex = -1;
          document.body.prepend(top);
          top.focus();
        }"""
    )
    found: list[dict[str, Any]] = []
    for _ in range(page.evaluate("() => window.controls.length") + 2):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => {
              const each = document.activeElement;
              if (!each || each === document.body) return null;
              const style = getComputedStyle(each), box = each.getClientRects()[0];
              const across = box.left + Math.min(box.width, 40) / 2, down = box.top + Math.min(box.height, 20) / 2;
              const top = document.elementFromPoint(across, down);
              const seen = top && (each.contains(top) || top.contains(each) || top.closest('label'));
              return {
                place: window.controls.indexOf(each),
                markup: each.outerHTML.slice(0, 120),
                drawn: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
                covered: seen ? null : (top ? top.outerHTML.slice(0, 80) : 'outside the window'),
              };
            }"""
        )
        if stop is None or (found and stop["place"] == found[0]["place"]):
            break
        found.append(stop)
    return found
