"""What all bodies share: fields are described where they are declared.

In requests, an unknown field is an error, and so is a number that JSON does not have.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """Base of what is sent to us."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Answer(BaseModel):
    """Base of what we send."""

    model_config = ConfigDict(use_attribute_docstrings=True)
