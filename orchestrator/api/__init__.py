"""The HTTP interface: searches, rollouts as dashboards see them, health, metrics. Reads only; nothing here changes state."""
