"""Named statements. One function is one statement of that name; the name travels along as an SQL comment.

models      models, adapters, certificates
galleries   galleries, items, query sets, relevance
rollouts    rollouts, plans, serving, audit
batches     claim, renew, commit, release, the log
plans       revisions of plans
demand      how often items are retrieved
flips       evaluations, flips, curves
churn       churn against the old system
workers     worker registry
reporting   the dashboard views
metrics     what a scrape reads
directory   what a server of searches keeps in memory
"""
