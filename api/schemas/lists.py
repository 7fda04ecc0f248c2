"""OpenAI's list object, and the strings that a database takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator

from api.schemas.bodies import Answer
from jenga_core.service.pagination import Page

Item = TypeVar("Item", bound=Answer)


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("NUL characters are not allowed")
    text.encode()  # JSON can spell half of a surrogate pair; the error is a ValueError, too
    return text


Text = Annotated[str, AfterValidator(_storable)]
"""A string that every database takes."""


class ListOf(Answer, Generic[Item]):
    """One page: `after=last_id` asks for the next one while `has_more`."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False

    @classmethod
    def of(cls, page: Page[Any], item: Callable[[Any], Item]) -> Self:
        """A page of rows, each turned into its public form."""
        data = [item(row) for row in page.rows]
        ids = [getattr(entry, "id", None) for entry in data]
        return cls(
            data=data, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=page.has_more
        )
