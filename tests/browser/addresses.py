"""The pages that every test of pages looks at, in the ledger of `tests.browser.world`."""

from __future__ import annotations

from tests.browser.world import GOES_ON, HALTED, HOSTILE, TAKEN_BACK

PAGES = {
    "rollouts": "/",
    "halted": f"/rollouts/{HALTED}",
    "goes on": f"/rollouts/{GOES_ON}",
    "over": f"/rollouts/{TAKEN_BACK}",
    "hostile": f"/rollouts/{HOSTILE}",
    "flips": f"/rollouts/{HALTED}/flips?kind=negative&reference=old_system&k=1",
    "hostile flips": f"/rollouts/{HOSTILE}/flips",
    "confirmation": f"/rollouts/{HALTED}/rollback",
    "items": "/items?gallery=pics",
    "item": "/items?gallery=pics&key=class-00%2F0.png",
    "hostile items": "/items?gallery=hostile",
    "serving": "/serving",
    "certificates": "/certificates?set=pics%2Fasked",
    "audit": "/audit",
}
# One for each template, and both kinds of content.
DIFFERENT = {
    name: PAGES[name]
    for name in (
        "rollouts", "halted", "flips", "confirmation", "items", "item", "hostile items", "serving", "certificates", "audit"
    )
}  # fmt: skip
# Address → the status of its error page.
NOWHERE = {
    "/rollouts/99": 404,
    "/nowhere": 404,
    "/items?gallery=none": 404,
    f"/rollouts/{HALTED}/flips?kind=odd": 400,
}
