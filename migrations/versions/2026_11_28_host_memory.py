"""The memory of hosts, and what jobs keep there (offload)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c81f4a6d20e9"
down_revision = "c71f0b6d2e84"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("workers") as workers:
        workers.add_column(sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("host_bytes", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("host_bytes")
    with op.batch_alter_table("workers") as workers:
        workers.drop_column("memory_bytes")
