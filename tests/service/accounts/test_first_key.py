"""The first key is made once; what became of it since is nobody's business but its team's."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from jenga_core.errors import ConfigError
from jenga_core.service.accounts.first_key import ensure_first_key
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import ApiKey
from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings


def test_a_key_that_was_rotated_is_left_alone(settings: Settings, database: Database) -> None:
    ensure_first_key(settings)
    made = settings.admin_key_file.read_text()
    with database.writing() as session:
        session.execute(update(ApiKey).values(revoked_at=database_now()))
    ensure_first_key(settings)
    assert settings.admin_key_file.read_text() == made


def test_a_key_of_another_database_is_refused(settings: Settings, database: Database) -> None:
    ensure_first_key(settings)
    with database.writing() as session:
        session.execute(update(ApiKey).values(digest="0" * 64))
    with pytest.raises(ConfigError, match="the data folder belongs to another one, or JENGA_SECRET_KEY has changed"):
        ensure_first_key(settings)
