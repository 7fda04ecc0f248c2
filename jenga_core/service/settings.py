"""Process settings: where the data lives, which database, which broker.

Every setting is an environment variable with the prefix JENGA_. With none set, Jenga is embedded: one folder holds the
SQLite database, the files and the address of its own broker.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from jenga_core.errors import ConfigError


class Settings(BaseSettings):
    """Read once per process with `Settings()`."""

    model_config = SettingsConfigDict(env_prefix="JENGA_", frozen=True, use_attribute_docstrings=True)

    data_dir: Path = Path("~/.local/share/jenga")
    """Folder of everything Jenga keeps: database, files, models, job folders, keys."""

    database_url: str | None = None
    """SQLAlchemy or PostgreSQL URL; None means SQLite in the data folder."""

    broker_url: str | None = None
    """Redis-protocol URL for Celery; None means the embedded server that `jenga up` starts."""

    secret_key: str | None = None
    """Pepper of the API-key digests. None means a random one, made once and kept in the data folder."""

    max_upload_bytes: int = Field(default=8 * 2**30, gt=0)
    """Largest file that may be uploaded."""

    requests_per_minute: int = Field(default=12_000, ge=0)
    """Requests that one API key may make in a minute; 0 means any number. Counted in the broker."""

    webhooks_to_private_addresses: bool = False
    """Whether webhooks may go to plain http and to addresses that are not public; for receivers on the same network."""

    keep_checkpoints_days: float = Field(default=7.0, ge=0)
    """How long the checkpoints of a job that has ended are kept. Those of a job that may go on are always kept."""

    lease_seconds: float = Field(default=30.0, gt=0)
    """How long a supervisor holds a job without renewing. Renewed every third of it."""

    max_attempts: int = Field(default=3, ge=1)
    """How often a job whose trainer was killed is started in all."""

    def folder(self, *parts: str) -> Path:
        """A folder inside the data folder, made (mode 700) when missing."""
        path = self.data_dir.expanduser().joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    @property
    def database(self) -> str:
        """The SQLAlchemy URL; plain postgres URLs get the psycopg 3 driver. Raises ConfigError for other databases."""
        if self.database_url is None:
            return f"sqlite:///{self.folder() / 'jenga.db'}"
        scheme, separator, rest = self.database_url.partition("://")
        if scheme in ("postgres", "postgresql"):
            return f"postgresql+psycopg{separator}{rest}"
        if scheme.partition("+")[0] not in ("postgresql", "sqlite"):
            raise ConfigError(f"JENGA_DATABASE_URL begins with {scheme!r}; expected postgresql:// or sqlite://")
        return self.database_url

    @property
    def broker(self) -> str:
        """The Celery broker URL. The embedded server's address is a file in the data folder."""
        if self.broker_url is not None:
            return self.broker_url
        address = self.broker_address_file
        if not address.exists():
            raise ConfigError(
                f"no broker: JENGA_BROKER_URL is not set and {address} does not exist; "
                "start the embedded broker with `jenga up`, or set JENGA_BROKER_URL to a Redis server"
            )
        return address.read_text().strip()

    @property
    def broker_address_file(self) -> Path:
        """Where `jenga up` records the embedded broker's URL (its socket lives in a short temporary path)."""
        return self.folder() / "broker.url"

    @property
    def admin_key_file(self) -> Path:
        """The API key made at first start (mode 600)."""
        return self.folder() / "admin.key"

    @property
    def pepper(self) -> bytes:
        """Secret mixed into every API-key digest, so that a stolen database alone opens nothing."""
        if self.secret_key is not None:
            return self.secret_key.encode()
        path = self.folder() / "secret.key"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32))
        return path.read_text().strip().encode()


def write_private(path: Path, text: str) -> None:
    """Write a secret that only the owner can read; an existing file is left alone (first writer wins)."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
