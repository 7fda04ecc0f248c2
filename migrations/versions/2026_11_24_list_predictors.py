"""List predictors: what jobs trained to predict block scores, for the next jobs on the same model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "3f6c1d9a7e52"
down_revision = "bf70fcb60961"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "predictors",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("team_id", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("folder", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_predictors_job_id_jobs")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_predictors_team_id_teams")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_predictors")),
        sa.UniqueConstraint("folder", name=op.f("uq_predictors_folder")),
    )
    op.create_index(op.f("ix_predictors_team_id_created_at_id"), "predictors", ["team_id", "created_at", "id"])


def downgrade() -> None:
    op.drop_table("predictors")
