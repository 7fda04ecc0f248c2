"""Where the bytes of files and of parts of uploads lie: `DATA_DIR/files/<id>`. Ids are ours; a user's filename never
becomes a path."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from jenga_core.service.settings import Settings


class FileStore:
    """A local folder of files by id."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.folder("files")

    def path(self, file_id: str) -> Path:
        """Where the bytes of this file are, or will be."""
        assert re.fullmatch(r"[a-z]+[-_][0-9A-Za-z]+", file_id), file_id
        return self.folder / file_id

    @contextmanager
    def writing(self, file_id: str) -> Iterator[BinaryIO]:
        """A binary file that appears under its id only when the block ends well; nothing half-written stays."""
        descriptor, partial = tempfile.mkstemp(dir=self.folder, prefix=".partial-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path(file_id))
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise

    def copy_in(self, file_id: str, source: Path) -> int:
        """Store a copy of `source`; return its size in bytes."""
        with source.open("rb") as reader, self.writing(file_id) as writer:
            shutil.copyfileobj(reader, writer, length=1 << 20)
        return self.path(file_id).stat().st_size

    def forget_partials(self, *, older_than_seconds: float) -> None:
        """Remove what writers that were killed have left half-written: nobody has added to it for so long."""
        for partial in self.folder.glob(".partial-*"):
            try:
                if time.time() - partial.stat().st_mtime > older_than_seconds:
                    partial.unlink()
            except FileNotFoundError:  # its writer is done with it
                continue

    def is_writable(self) -> bool:
        """Whether files can be stored now."""
        return os.access(self.folder, os.W_OK | os.X_OK)

    def delete(self, file_id: str) -> None:
        """Remove the bytes; missing is fine."""
        self.path(file_id).unlink(missing_ok=True)
