"""Teams and the rest of the contract: scopes, quotas, the audit log, uploads in parts, files that expire, webhooks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "a4d2e8c91b35"
down_revision = "3f6c1d9a7e52"
branch_labels = None
depends_on = None

EVERY_SCOPE = '["read", "write", "admin"]'
"""What a key could do before there were scopes."""


def upgrade() -> None:
    with op.batch_alter_table("teams") as teams:
        teams.add_column(sa.Column("max_storage_bytes", sa.BigInteger(), nullable=True))
        teams.add_column(sa.Column("max_queued_jobs", sa.Integer(), nullable=True))
        teams.add_column(sa.Column("max_running_jobs", sa.Integer(), nullable=True))
        teams.add_column(sa.Column("max_gpu_hours", sa.Double(), nullable=True))
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("scopes", sa.JSON(), nullable=False, server_default=EVERY_SCOPE))
        keys.add_column(sa.Column("expires_at", sa.Double(), nullable=True))
        keys.add_column(sa.Column("last_used_at", sa.Double(), nullable=True))
    with op.batch_alter_table("api_keys") as keys:
        keys.alter_column("scopes", server_default=None)
    with op.batch_alter_table("files") as files:
        files.add_column(sa.Column("expires_at", sa.Double(), nullable=True))
        files.create_index(op.f("ix_files_expires_at"), ["expires_at"])
    op.create_index(op.f("ix_jobs_team_id_started_at"), "jobs", ["team_id", "started_at"])
    op.create_index(op.f("ix_jobs_team_id_state"), "jobs", ["team_id", "state"])
    op.create_table(
        "audit_log",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("team_id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("object_id", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_audit_log_key_id_api_keys")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_audit_log_team_id_teams")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index(op.f("ix_audit_log_created_at_id"), "audit_log", ["created_at", "id"])
    op.create_index(op.f("ix_audit_log_team_id_created_at_id"), "audit_log", ["team_id", "created_at", "id"])
    op.create_table(
        "job_requests",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("body_sha256", sa.String(), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_requests_job_id_jobs")),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_job_requests_key_id_api_keys")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_requests")),
    )
    op.create_index(
        op.f("ix_job_requests_key_id_idempotency_key"), "job_requests", ["key_id", "idempotency_key"], unique=True
    )
    op.create_index(
        op.f("ix_job_requests_key_id_body_sha256_created_at"), "job_requests", ["key_id", "body_sha256", "created_at"]
    )
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("team_id", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("file_expires_after_seconds", sa.Integer(), nullable=True),
        sa.Column("file_id", sa.String(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_uploads_team_id_teams")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index(op.f("ix_uploads_team_id_status"), "uploads", ["team_id", "status"])
    op.create_index(op.f("ix_uploads_status_expires_at"), "uploads", ["status", "expires_at"])
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name=op.f("fk_upload_parts_upload_id_uploads")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload_parts")),
    )
    op.create_index(op.f("ix_upload_parts_upload_id"), "upload_parts", ["upload_id"])
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("team_id", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_webhook_endpoints_team_id_teams")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
    )
    op.create_index(
        op.f("ix_webhook_endpoints_team_id_created_at_id"), "webhook_endpoints", ["team_id", "created_at", "id"]
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("event_id", sa.String(), nullable=False),
        sa.Column("endpoint_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", sa.Double(), nullable=True),
        sa.Column("delivered_at", sa.Double(), nullable=True),
        sa.Column("last_error", sa.String(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.id"],
            name=op.f("fk_webhook_deliveries_endpoint_id_webhook_endpoints"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_webhook_deliveries_job_id_jobs")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index(op.f("ix_webhook_deliveries_next_attempt_at"), "webhook_deliveries", ["next_attempt_at"])
    op.create_index(
        op.f("ix_webhook_deliveries_endpoint_id_job_id_seq"), "webhook_deliveries", ["endpoint_id", "job_id", "seq"]
    )


def downgrade() -> None:
    for table in (
        "webhook_deliveries",
        "webhook_endpoints",
        "upload_parts",
        "uploads",
        "job_requests",
        "audit_log",
    ):
        op.drop_table(table)
    op.drop_index(op.f("ix_jobs_team_id_state"), "jobs")
    op.drop_index(op.f("ix_jobs_team_id_started_at"), "jobs")
    with op.batch_alter_table("files") as files:
        files.drop_index(op.f("ix_files_expires_at"))
        files.drop_column("expires_at")
    with op.batch_alter_table("api_keys") as keys:
        for column in ("last_used_at", "expires_at", "scopes"):
            keys.drop_column(column)
    with op.batch_alter_table("teams") as teams:
        for column in ("max_gpu_hours", "max_running_jobs", "max_queued_jobs", "max_storage_bytes"):
            teams.drop_column(column)
