"""The built-in dashboard: pages over the reporting views, and the verbs of a rollout behind a confirmation."""
