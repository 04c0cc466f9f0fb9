"""A refresh curve says of which query set it is.

Revision ID: 0010
"""

from pathlib import Path

from alembic import op

revision = "0010"
down_revision = "0009"

FOLDER = Path(__file__).parents[1] / "sql"


def upgrade() -> None:
    _run(_read("0010_curve.sql"))


def downgrade() -> None:
    """The view as 0006 made it: a column of a view goes only with the view."""
    _run("DROP VIEW reporting.refresh_curve;")
    views = _read("0006_flips.sql")
    first = views.index("CREATE OR REPLACE VIEW reporting.refresh_curve")
    _run(views[first : views.index(";", first) + 1])
    for name in ("dashboard_role.sql", "0004_roles.sql"):
        _run(_read(name))


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _run(sql: str) -> None:
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
