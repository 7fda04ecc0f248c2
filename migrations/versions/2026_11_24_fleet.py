"""The fleet: hosts, devices, leases, use by team; and what a job says about its place in the queue."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "c71f0b6d2e84"
down_revision = "a4d2e8c91b35"
branch_labels = None
depends_on = None


def job_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("gpus", sa.Integer(), server_default="1", nullable=False),
        sa.Column("oom_policy", sa.String(), server_default="fail", nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("stop_asked_at", sa.Double(), nullable=True),
        sa.Column("filler", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("give_way_at", sa.Double(), nullable=True),
        sa.Column("shrunk", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("gpu_seconds", sa.Double(), server_default="0", nullable=False),
    ]


def upgrade() -> None:
    for column in job_columns():  # plain ADD COLUMN: copying the table on SQLite would lose its CHECK constraints
        op.add_column("jobs", column)
    op.create_table(
        "workers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("heartbeat_at", sa.Double(), nullable=False),
        sa.Column("draining", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "devices",
        sa.Column("uuid", sa.String(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("memory_used_bytes", sa.BigInteger(), nullable=False),
        sa.Column("foreign_processes", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_devices_worker_id_workers")),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_devices")),
    )
    op.create_index(op.f("ix_devices_worker_id"), "devices", ["worker_id"])
    op.create_table(
        "device_leases",
        sa.Column("device_uuid", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["device_uuid"], ["devices.uuid"], name=op.f("fk_device_leases_device_uuid_devices")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_device_leases_job_id_jobs")),
        sa.PrimaryKeyConstraint("device_uuid", name=op.f("pk_device_leases")),
    )
    op.create_index(op.f("ix_device_leases_job_id"), "device_leases", ["job_id"])
    op.create_table(
        "team_usage",
        sa.Column("team_id", sa.String(), nullable=False),
        sa.Column("gpu_seconds", sa.Double(), nullable=False),
        sa.Column("as_of", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_team_usage_team_id_teams")),
        sa.PrimaryKeyConstraint("team_id", name=op.f("pk_team_usage")),
    )


def downgrade() -> None:
    for table in ("team_usage", "device_leases", "devices", "workers"):
        op.drop_table(table)
    for column in reversed(job_columns()):
        op.drop_column("jobs", column.name)
