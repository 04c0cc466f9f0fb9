"""Row 5: the share of a drain's time in which its encoder is busy, through real claims, items, extents and commits."""

from __future__ import annotations

from dataclasses import dataclass

from bench.result import Row, median, quartiles, seconds
from bench.scratch import register_network, scratch_context
from bench.stubs import PacedStub, Timed
from models.encoders import Encoder
from orchestrator.context import Context
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import batches, galleries, rollouts
from orchestrator.service import advance, embed
from orchestrator.settings import Settings

RATE_PER_S = 10_000
BARE_ITEMS = 8192


@dataclass(frozen=True)
class Case:
    """One drain to measure."""

    name: str
    gallery: str
    encoder: Encoder
    batch_size: int
    least: float


def run(settings: Settings | None = None, *, repeats: int = 5, quick: bool = False) -> list[Row]:
    """Median busy share of `repeats` drains each: the stub at two batch sizes, a vision transformer on real pictures."""
    items = 10_240 if quick else 51_200
    with scratch_context(settings) as context:
        # The stub drains in the name of this model; the transformer is drained as itself.
        model = register_network(context, "bench", "vit", {}, 0)
        stub = PacedStub(RATE_PER_S)
        texts = {
            n: _gallery(context, f"texts-{n}", [f"text:item {i}" for i in range(n)])
            for n in (items, 2 * items)
        }
        from models.datasets import list_items

        pictures = [item.uri for item in list_items("glyphs", "gallery").items]
        glyphs = _gallery(context, "glyphs", pictures[:2048] if quick else pictures)
        paced = f"stub of {RATE_PER_S:,} items/s"
        cases = [
            Case(f"{paced}, {items:,} items", texts[items], stub, 1024, 0.98),
            Case(f"{paced}, {2 * items:,} items", texts[2 * items], stub, 4096, 0.995),
            Case(f"small ViT on the CPU, {2048 if quick else len(pictures):,} glyphs", glyphs, context.encoder(model),
                 256, 0.99),
        ]  # fmt: skip
        return [_measure(context, case, repeats) for case in cases]


def _measure(context: Context, case: Case, repeats: int) -> Row:
    shares, against_bare, walls = [], [], []
    for _ in range(repeats):
        busy_s, wall_s, bare_s = _drain(context, case)
        shares.append(busy_s / wall_s)
        against_bare.append(bare_s / wall_s)
        walls.append(wall_s)
    share = median(shares)
    return Row(
        5,
        f"encoder busy / wall, {case.name}, B = {case.batch_size:,}: median of {repeats}, {quartiles(shares, form='.4f')}",
        share,
        "share",
        f"the bare encode loop, {median(against_bare):.3f} of {median(walls):.2f} s",
        median(against_bare),
        f">= {case.least}",
        share >= case.least,
    )


def _drain(context: Context, case: Case) -> tuple[float, float, float]:
    """(busy, wall, bare) seconds; bare: the same items through the encoder from memory, nothing else going on."""
    from orchestrator.service.rollouts import cancel
    from workers.drain import drain

    rollout = embed.embed_gallery(context, case.gallery, "bench", case.batch_size)
    advance.advance(context, rollout.id)
    bare_s = _bare(context, case) * rollout.n_items
    encoder = Timed(case.encoder)
    result = drain(context, rollout.id, owner="bench", encoder=encoder)
    assert result.failure is None, result.failure
    assert result.items == rollout.n_items, "an item was lost, doubled or quarantined"
    with transaction(context.engine) as connection:
        committed = rollouts.rollout_by_id(connection, rollout.id)
        assert committed is not None
        assert committed.committed_items == rollout.n_items
        assert batches.attempts_histogram(connection, rollout.id) == {1: result.batches}
    cancel(context, rollout.id)  # so that the next one can embed the gallery again
    return encoder.busy_s, result.wall_s, bare_s


def _bare(context: Context, case: Case) -> float:
    """Seconds an item of the bare encode loop."""
    from models.datasets import read_item

    with transaction(context.engine) as connection:
        gallery = galleries.gallery_by_name(connection, case.gallery)
        assert gallery is not None
        uris = galleries.uris_of_rows(
            connection, gallery.id, list(range(case.batch_size)), case.encoder.modality
        )
    prepared = [case.encoder.preprocess(read_item(uri)) for uri in uris if uri]
    count = max(1, min(BARE_ITEMS, gallery.n_items) // case.batch_size)
    return seconds(lambda: [case.encoder.encode(prepared) for _ in range(count)]) / (count * len(prepared))


def _gallery(context: Context, name: str, uris: list[str]) -> str:
    with transaction(context.engine) as connection:
        gallery = galleries.insert_gallery(connection, name=name, modality="image", source="bench")
        assert gallery is not None
        galleries.copy_items(connection, gallery, ((n, str(n), uri, None) for n, uri in enumerate(uris)))
    return name
