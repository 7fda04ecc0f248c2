"""Fewer points of a long series: a plot of a million steps needs no million rows.

Every k-th row is taken, from the first on, and the last, in SQL. Points stay measured ones; nothing is averaged: half a
spike is a wrong number.
"""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from jenga_core.service.db.models import Job
from jenga_core.service.jobs.repository import PerStep


def thinned(session: Session, job: Job, table: type[PerStep], *, after_step: int, max_points: int) -> list[PerStep]:
    """At most `max_points` (2 or more) of its rows behind `after_step`, evenly spread, in the order of their steps."""
    of_job: Any = (table.job_id == job.id) & (table.step > after_step)
    total = session.scalars(select(func.count()).select_from(table).where(of_job)).one()
    rows: Any = select(table).where(of_job).order_by(table.step)
    if total > max_points:
        stride = math.ceil((total - 1) / (max_points - 1))
        number = func.row_number().over(order_by=table.step).label("number")
        numbered = select(table.step, number).where(of_job).subquery()
        kept = or_((numbered.c.number - 1) % stride == 0, numbered.c.number == total)
        rows = rows.join(numbered, (numbered.c.step == table.step) & kept)
    return list(session.scalars(rows))
