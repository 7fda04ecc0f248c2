"""Pages by cursor, the way OpenAI's client walks them: `after=<id of the last object seen>` until `has_more` is false.

The client has no guard against a list that never ends, so the order must be total, (created_at, id), and a cursor that
names nothing must be an error, not page one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import Session

from jenga_core.errors import JengaError

Row = TypeVar("Row")


class CursorError(JengaError):
    """`after` names no object of this list."""

    status, code = 400, "invalid_cursor"

    def __init__(self, after: str) -> None:
        super().__init__(
            f"after={after!r} is no object of this list; pass the id of the last object of the page before",
            param="after",
        )


@dataclass(frozen=True)
class Page(Generic[Row]):
    """Some rows of a list, and whether there are more behind them."""

    rows: list[Row]
    has_more: bool

    @classmethod
    def of(cls, rows: Iterable[Row], limit: int) -> Page[Row]:
        """The first `limit` of the rows; looks at one more and no further."""
        found = list(islice(rows, limit + 1))
        return cls(found[:limit], len(found) > limit)


def by_age(
    session: Session,
    statement: Select[Any],
    entity: Any,
    *,
    after: str | None,
    limit: int,
    newest_first: bool = True,
    keep: Callable[[Any], bool] | None = None,
) -> Page[Any]:
    """A page of `statement`, whose rows are `entity` objects with `created_at` and `id`.

    `keep` filters in Python what SQL cannot say alike on every database; rows are then fetched until the page is full.
    Raises CursorError when no row of the statement has the id `after`.
    """
    created_at, id_ = entity.created_at, entity.id
    if after is not None:
        last = session.scalars(statement.where(id_ == after)).one_or_none()
        if last is None:
            raise CursorError(after)
        # The first comparison is implied by the rest; it lets the database begin its walk of the index right there.
        older = and_(created_at <= last.created_at, or_(created_at < last.created_at, id_ < last.id))
        newer = and_(created_at >= last.created_at, or_(created_at > last.created_at, id_ > last.id))
        statement = statement.where(older if newest_first else newer)
    order = (created_at.desc(), id_.desc()) if newest_first else (created_at, id_)
    statement = statement.order_by(*order)
    if keep is None:
        return Page.of(session.scalars(statement.limit(limit + 1)), limit)
    with closing(session.scalars(statement.execution_options(yield_per=200))) as rows:
        return Page.of(filter(keep, rows), limit)
