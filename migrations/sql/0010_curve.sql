-- The same rows and columns as before, and behind them the query set: of a simulated order that of the rollout's certificate, which
-- saw it; null where there is none.
CREATE OR REPLACE VIEW reporting.refresh_curve AS
SELECT p.rollout_id AS rollout, p.coverage, p.metric, p.value, p.order_name AS against_order, s.name AS queryset
FROM curve_point p
JOIN rollout r ON r.id = p.rollout_id
LEFT JOIN certificate c ON c.id = r.certificate_id
LEFT JOIN query_set s ON s.id = c.query_set_id
UNION ALL
SELECT e.rollout_id, e.items::double precision / nullif(r.n_items, 0), 'recall_at_' || e.k,
       (e.both_right + e.positive_flips)::double precision / nullif(e.n, 0), 'measured', s.name
FROM evaluation e
JOIN rollout r ON r.id = e.rollout_id
JOIN query_set s ON s.id = e.query_set_id
WHERE e.point AND e.slice = 'all';
