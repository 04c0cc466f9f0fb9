"""How a certificate is shown: its figures, its flips, and what calibrated scores do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from cli.output import draw, make_pairs, make_table

if TYPE_CHECKING:
    from orchestrator.ledger.rows import CertificateRow


def draw_certificate(row: CertificateRow) -> None:
    """Print a certificate as tables."""
    names = {
        "old_old": "old queries, old gallery",
        "new_old": "new queries, gallery at 0 %",
        "lowest": "lowest along a simulated refresh",
        "new_new": "new queries, gallery at 100 %",
    }
    measured, intervals = row.measured, row.measured.get("intervals", {})
    rows = [
        {"": text, "recall at 1": measured.get(key), "95 % interval": _interval(intervals.get(key))}
        for key, text in names.items()
    ]
    for key, text in {
        "start_difference": "new − old at 0 %",
        "lowest_difference": "lowest − old along it",
    }.items():
        before, after = (
            measured.get("old_old"),
            measured.get("new_old" if key == "start_difference" else "lowest"),
        )
        difference = None if before is None or after is None else after - before
        rows.append({"": text, "recall at 1": difference, "95 % interval": _interval(intervals.get(key))})
    flips = [{"flips": f"{where}, {point['coverage']:.0%}", **point}
             for where, point in measured.get("flips", {}).items() if point]  # fmt: skip
    draw(
        make_table(rows, ("", "recall at 1", "95 % interval")),
        *([make_table(flips, ("flips", "negative", "positive", "mcnemar_p"))] if flips else []),
        make_pairs(
            {
                "update gain": measured.get("update_gain"),
                "queries": measured.get("queries"),
                **_quantisation(measured),
                **_calibration(measured),
            }
        ),
    )
    typer.echo(f"{row.verdict}: {row.reason}")


def _quantisation(measured: dict[str, Any]) -> dict[str, Any]:
    """What the codec alone costs, in words."""
    cost = measured.get("quantisation")
    if cost is None:
        return {}
    return {
        "codes alone": f"recall {cost['recall_of_floats']:.4f} of floats, {cost['recall_of_codes']:.4f} of codes; "
        f"{cost['negative']} queries turn wrong and {cost['positive']} right, "
        f"{cost['overlap']:.1%} of the {cost['depth']} best are the same"
    }


def _calibration(measured: dict[str, Any]) -> dict[str, Any]:
    """What calibrated scores do to queries they were not fitted on, in words."""
    fitted = measured.get("calibration")
    if fitted is None:
        return {}
    held_out = fitted["held_out"]
    (raw_nfr, nfr), (raw_recall, recall) = held_out["nfr"], held_out["recall"]
    shown = {
        "calibration": "on" if fitted["on"] else "off, it does not pay",
        "calibrated score": f"{fitted['scale']:.4f} s {fitted['offset']:+.4f}",
        "mean NFR along it": f"{raw_nfr:.4f} raw, {nfr:.4f} calibrated ({_interval(held_out['difference'])})",
        "mean recall along it": f"{raw_recall:.4f} raw, {recall:.4f} calibrated",
    }
    if (raw := measured.get("uncalibrated")) is not None:
        shown["raw verdict"] = f"{raw['verdict']}: {raw['reason']}"
    if (guard := measured.get("guard")) is not None:
        held_out = guard["held_out"]
        (nfr, guarded), share = held_out["nfr"], held_out["share"]
        shown["with --guard"] = f"mean NFR {nfr:.4f} to {guarded:.4f}, {share:.1%} of searches guarded"
    return shown


def _interval(bounds: dict[str, float] | None) -> str | None:
    return None if bounds is None else f"{bounds['low']:.4f} to {bounds['high']:.4f}"
