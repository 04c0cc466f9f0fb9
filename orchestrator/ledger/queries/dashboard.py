"""Statements of the dashboard's pages: what the views hold, put together for one page, each bounded by what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute

Row = dict[str, Any]


def newest_summaries(connection: Connection, rollout_ids: Sequence[int]) -> list[Row]:
    """The newest row of `flip_summary` at k = 1 of each query set of these rollouts: what `rollout status` shows."""
    return _rows(
        connection,
        "newest_summaries",
        """SELECT f.* FROM rollout r JOIN query_set s ON s.gallery_id = r.gallery_id
           CROSS JOIN LATERAL (SELECT * FROM reporting.flip_summary f
                               WHERE f.rollout = r.id AND f.queryset = s.name AND f.k = 1 AND f.slice = 'all'
                               ORDER BY f.seq DESC LIMIT 1) f
           WHERE r.id = ANY(CAST(:ids AS bigint[])) ORDER BY r.id DESC, s.id""",
        ids=list(rollout_ids),
    )


def churn_without_relevance(connection: Connection, rollout_ids: Sequence[int]) -> list[Row]:
    """The newest row of `churn_summary` of each query set of these rollouts, where no query set has labels or pairs."""
    return _rows(
        connection,
        "churn_without_relevance",
        """SELECT c.* FROM rollout r JOIN query_set s ON s.gallery_id = r.gallery_id
           CROSS JOIN LATERAL (SELECT * FROM reporting.churn_summary c
                               WHERE c.rollout = r.id AND c.queryset = s.name AND c.slice = 'all'
                               ORDER BY c.seq DESC LIMIT 1) c
           WHERE r.id = ANY(CAST(:ids AS bigint[])) AND NOT EXISTS (
               SELECT 1 FROM query_set k WHERE k.gallery_id = r.gallery_id AND k.relevance NOT IN ('none', 'clicks'))
           ORDER BY r.id DESC, s.id""",
        ids=list(rollout_ids),
    )


def measured_points(connection: Connection, rollout_id: int) -> list[Row]:
    """What was counted along a refresh, a row for each drawn point, and the newest: queryset, k, seq, coverage, recall, counts.

    The rows `measured` of `refresh_curve`, with what it does not say.
    """
    return _rows(
        connection,
        "measured_points",
        # The newest of each is looked up by itself: a condition that says "or the newest" would read the whole history.
        """WITH drawn AS (SELECT query_set_id, k, seq FROM evaluation WHERE rollout_id = :rollout AND point AND slice = 'all'),
                shown AS (
               SELECT * FROM drawn UNION
               SELECT n.query_set_id, n.k, n.seq FROM (SELECT DISTINCT query_set_id, k FROM drawn) d
               CROSS JOIN LATERAL (SELECT * FROM evaluation
                                   WHERE rollout_id = :rollout AND query_set_id = d.query_set_id AND k = d.k AND slice = 'all'
                                   ORDER BY seq DESC LIMIT 1) n)
           SELECT s.name AS queryset, e.k, e.seq, e.items::double precision / nullif(r.n_items, 0) AS coverage,
                  (e.both_right + e.positive_flips)::double precision / nullif(e.n, 0) AS recall,
                  (e.both_right + e.negative_flips)::double precision / nullif(e.n, 0) AS old_recall,
                  e.negative_flips, e.positive_flips, e.n
           FROM shown JOIN evaluation e ON e.rollout_id = :rollout AND e.query_set_id = shown.query_set_id AND e.k = shown.k
             AND e.slice = 'all' AND e.seq = shown.seq
           JOIN rollout r ON r.id = e.rollout_id JOIN query_set s ON s.id = e.query_set_id
           ORDER BY s.id, e.k, e.seq""",
        rollout=rollout_id,
    )


def flips_by_cause(connection: Connection, rollout_id: int, seqs: Sequence[int]) -> list[Row]:
    """How the open negative flips against the old system at k = 1 change from one of these log entries to the next.

    Args:
        seqs: rising.

    Returns:
        queryset, cause, place (0 … len(seqs), the first of `seqs` that has seen it; the last is behind them all), change.
    """
    return _rows(
        connection,
        "flips_by_cause",
        """SELECT s.name AS queryset, m.cause, width_bucket(m.seq - 1, CAST(:seqs AS bigint[])) AS place, sum(m.change) AS change
           FROM (SELECT query_set_id, coalesce(cause, 'mixed_stage') AS cause, opened_seq AS seq, 1 AS change FROM flip
                 WHERE rollout_id = :rollout AND kind = 'negative' AND reference = 'old_system' AND k = 1
                 UNION ALL
                 SELECT query_set_id, coalesce(cause, 'mixed_stage'), healed_seq, -1 FROM flip
                 WHERE rollout_id = :rollout AND kind = 'negative' AND reference = 'old_system' AND k = 1
                   AND healed_seq IS NOT NULL) m
           JOIN query_set s ON s.id = m.query_set_id GROUP BY 1, 2, 3 ORDER BY 1, 2, 3""",
        rollout=rollout_id,
        seqs=list(seqs),
    )


# Filter of the flip explorer → its condition on `flip_items`. The values are bound.
_FLIP_FILTERS = {
    "queryset": "queryset = :queryset",
    "kind": "kind = :kind",
    "reference": "reference = :reference",
    "cause": "cause = :cause",
    "k": "k = :k",
    "attribute": "attributes ->> :attribute = :attribute_value",
}
_FLIP_FATES = {"open": "healed_seq IS NULL", "healed": "healed_seq IS NOT NULL"}


def _flip_condition(filters: Mapping[str, Any]) -> str:
    """`filters`: of `_FLIP_FILTERS` or `fate`, those that are None left out; `attribute` comes with `attribute_value`."""
    chosen = [_FLIP_FILTERS[name] for name in filters if name in _FLIP_FILTERS]
    if "fate" in filters:
        chosen.append(_FLIP_FATES[filters["fate"]])
    return " AND ".join(["rollout = :rollout", *chosen])


def _bound(filters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in filters.items() if name != "fate"}


def count_flips(connection: Connection, rollout_id: int, filters: Mapping[str, Any]) -> int:
    """How many rows of `flip_items` these filters leave."""
    sql = f"SELECT count(*) FROM reporting.flip_items WHERE {_flip_condition(filters)}"  # noqa: S608 - our own conditions
    return int(execute(connection, "count_flips", sql, rollout=rollout_id, **_bound(filters)).scalar_one())


def flips_page(
    connection: Connection, rollout_id: int, filters: Mapping[str, Any], *, limit: int, offset: int
) -> list[Row]:
    """Rows of `flip_items` under these filters, in the order they were opened."""
    sql = f"""SELECT * FROM reporting.flip_items WHERE {_flip_condition(filters)}
              ORDER BY opened_seq, queryset, query, k, reference LIMIT :row_limit OFFSET :row_offset"""  # noqa: S608
    return _rows(
        connection,
        "flips_page",
        sql,
        rollout=rollout_id,
        row_limit=limit,
        row_offset=offset,
        **_bound(filters),
    )


def attribute_values(connection: Connection, gallery_id: int, limit: int) -> list[str]:
    """`attribute=value` of a gallery's queries, the most frequent first."""
    result = execute(
        connection,
        "attribute_values",
        """SELECT a.key || '=' || a.value FROM query_set s JOIN query q ON q.query_set_id = s.id
           CROSS JOIN LATERAL jsonb_each_text(q.attributes) a WHERE s.gallery_id = :gallery
           GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT :limit""",
        gallery=gallery_id,
        limit=limit,
    )
    return [str(value) for (value,) in result]


def queries_by_key(connection: Connection, gallery_id: int, queryset: str, keys: Sequence[str]) -> list[Row]:
    """Queries of a set: key, uri, label."""
    return _rows(
        connection,
        "queries_by_key",
        """SELECT q.key, q.uri, q.label FROM query q JOIN query_set s ON s.id = q.query_set_id
           WHERE s.gallery_id = :gallery AND s.name = :queryset AND q.key = ANY(CAST(:keys AS text[]))""",
        gallery=gallery_id,
        queryset=queryset,
        keys=list(keys),
    )


def items_by_key(connection: Connection, gallery: str, keys: Sequence[str]) -> list[Row]:
    """Items of a gallery, with the version they are served in now: `embedding_versions` with uri and label."""
    return _rows(
        connection,
        "items_by_key",
        """SELECT v.*, i.uri, i.label FROM unnest(CAST(:keys AS text[])) AS wanted (key)
           CROSS JOIN LATERAL (SELECT * FROM reporting.embedding_versions
                               WHERE gallery = :gallery AND item = wanted.key) v
           JOIN gallery g ON g.name = v.gallery
           JOIN item i ON i.gallery_id = g.id AND i.key = v.item AND i.deleted_at IS NULL""",
        gallery=gallery,
        keys=list(keys),
    )


def versions_then(
    connection: Connection, gallery_id: int, asked: Sequence[tuple[str, int, int]]
) -> dict[tuple[str, int, int], Row]:
    """With which embedding an item was compared at an earlier moment: `embedding_version` as of then.

    Args:
        asked: (key of an item, newest rollout that counts, newest log entry that counts).

    Returns:
        For each that had one: model, rollout, and adapter where a newer rollout had lifted it.
    """
    rows = _rows(
        connection,
        "versions_then",
        """SELECT w.key, w.newest, w.seq, m.name AS model, found.id AS rollout,
                  (SELECT a.name FROM rollout n JOIN adapter a ON a.id = n.adapter_id
                   WHERE n.gallery_id = :gallery AND n.id > found.id AND n.id <= w.newest AND n.adapted_uri IS NOT NULL
                     AND (n.id = w.newest OR n.state <> ALL (:gone)) ORDER BY n.id DESC LIMIT 1) AS adapter
           FROM unnest(CAST(:keys AS text[]), CAST(:newest AS bigint[]), CAST(:seqs AS bigint[])) AS w (key, newest, seq)
           JOIN item i ON i.gallery_id = :gallery AND i.key = w.key AND i.deleted_at IS NULL
           CROSS JOIN LATERAL (
               SELECT r.id, r.to_model_id FROM rollout r
               CROSS JOIN LATERAL (SELECT l.rank FROM late_item l WHERE l.rollout_id = r.id AND l.row = i.row
                                   UNION ALL SELECT rank_of(r.id, i.row)) AS place
               CROSS JOIN LATERAL (SELECT * FROM batch WHERE batch.rollout_id = r.id AND batch.first_rank <= place.rank
                                   ORDER BY batch.first_rank DESC LIMIT 1) AS b
               WHERE r.gallery_id = :gallery AND r.id <= w.newest AND b.seq <= w.seq AND place.rank < b.first_rank + b.n
                 AND (r.id = w.newest OR r.state <> ALL (:gone))
                 AND NOT coalesce((place.rank - b.first_rank)::integer = ANY (b.holes), false)
                 AND NOT coalesce((place.rank - b.first_rank)::integer = ANY (b.superseded), false)
               ORDER BY r.id DESC LIMIT 1) AS found
           JOIN model m ON m.id = found.to_model_id""",
        gallery=gallery_id,
        gone=["planned", "cancelling", "cancelled", "rolling_back", "rolled_back", "failed"],
        keys=[key for key, _, _ in asked],
        newest=[newest for _, newest, _ in asked],
        seqs=[seq for _, _, seq in asked],
    )
    return {(row["key"], row["newest"], row["seq"]): row for row in rows}


def item_history(connection: Connection, gallery_id: int, row: int) -> list[Row]:
    """Every rollout of the gallery with the batches that had one of the item's ranks, newest first.

    Columns: rollout, kind, state, model, strategy, adapter, rank, batch (its first rank), late, uncertainty, batch_state,
    committed_at, seq, hole (it could not be embedded), superseded (its content had changed), reclaimed.
    """
    return _rows(
        connection,
        "item_history",
        """SELECT r.id AS rollout, r.kind, r.state, m.name AS model, r.strategy, a.name AS adapter, r.created_at,
                  place.rank, b.first_rank AS batch, place.rank >= r.plan_items AS late, b.uncertainty, b.state AS batch_state,
                  b.committed_at, b.seq, coalesce((place.rank - b.first_rank)::integer = ANY (b.holes), false) AS hole,
                  coalesce((place.rank - b.first_rank)::integer = ANY (b.superseded), false) AS superseded,
                  r.reclaimed_at IS NOT NULL AS reclaimed
           FROM rollout r JOIN model m ON m.id = r.to_model_id LEFT JOIN adapter a ON a.id = r.adapter_id
           LEFT JOIN LATERAL (SELECT l.rank FROM late_item l WHERE l.rollout_id = r.id AND l.row = :row
                              UNION ALL SELECT rank_of(r.id, :row)) AS place ON place.rank IS NOT NULL
           LEFT JOIN LATERAL (SELECT * FROM batch WHERE batch.rollout_id = r.id AND batch.first_rank <= place.rank
                              AND place.rank < batch.first_rank + batch.n
                              ORDER BY batch.first_rank DESC LIMIT 1) AS b ON true
           WHERE r.gallery_id = :gallery ORDER BY r.id DESC, place.rank DESC NULLS LAST LIMIT 200""",
        gallery=gallery_id,
        row=row,
    )


def serving_page(connection: Connection, gallery: str | None, *, limit: int, offset: int) -> list[Row]:
    """Rows of `serving_history`, the newest first."""
    return _rows(
        connection,
        "serving_page",
        """SELECT * FROM reporting.serving_history WHERE CAST(:gallery AS text) IS NULL OR gallery = CAST(:gallery AS text)
           ORDER BY valid_from DESC, gallery LIMIT :limit OFFSET :offset""",
        gallery=gallery,
        limit=limit,
        offset=offset,
    )


def newest_certificates(connection: Connection, query_set_id: int) -> list[Row]:
    """The newest certificate of each pair of models, with and without each adapter, measured on a query set.

    `query_model`: the model in whose space the queries are; `tower`: what embedded them, where that was a tower.
    """
    return _rows(
        connection,
        "newest_certificates",
        """SELECT DISTINCT ON (c.query_model_id, c.tower_of_model_id, c.gallery_model_id, c.adapter_id)
                  c.id, c.verdict, c.reason, c.measured,
                  c.created_at, coalesce(t.name, q.name) AS query_model,
                  CASE WHEN t.id IS NOT NULL THEN q.name END AS tower, g.name AS gallery_model, a.name AS adapter
           FROM certificate c JOIN model q ON q.id = c.query_model_id JOIN model g ON g.id = c.gallery_model_id
           LEFT JOIN adapter a ON a.id = c.adapter_id LEFT JOIN model t ON t.id = c.tower_of_model_id
           WHERE c.query_set_id = :query_set
           ORDER BY c.query_model_id, c.tower_of_model_id, c.gallery_model_id, c.adapter_id, c.id DESC""",
        query_set=query_set_id,
    )


def modules_page(connection: Connection) -> list[Row]:
    """Every downstream module with its newest certificate for each model; one row without any where it has none."""
    return _rows(
        connection,
        "modules_page",
        """SELECT d.module, d.model AS own_model, d.metric, d.digest, d.retired_at, c.model, c.old_value, c.new_value, c.n, c.low,
                  c.high, c.verdict, c.reason, c.source, c.created_at
           FROM reporting.downstream_modules d
           LEFT JOIN reporting.downstream_certificates c ON c.module = d.module AND c.newest
           ORDER BY d.retired_at IS NOT NULL, d.module, c.id DESC""",
    )


def audit_page(
    connection: Connection, filters: Mapping[str, str | None], *, limit: int, offset: int
) -> list[Row]:
    """Rows of `audit`, the newest first. `filters`: actor, action, target; None is left out."""
    return _rows(
        connection,
        "audit_page",
        """SELECT * FROM reporting.audit
           WHERE (CAST(:actor AS text) IS NULL OR actor = CAST(:actor AS text))
             AND (CAST(:action AS text) IS NULL OR action = CAST(:action AS text))
             AND (CAST(:target AS text) IS NULL OR target = CAST(:target AS text))
           ORDER BY at DESC LIMIT :limit OFFSET :offset""",
        actor=filters.get("actor"),
        action=filters.get("action"),
        target=filters.get("target"),
        limit=limit,
        offset=offset,
    )


def _rows(connection: Connection, name: str, sql: str, **values: Any) -> list[Row]:
    return [dict(row) for row in execute(connection, name, sql, **values).mappings()]
