"""Archives that come from elsewhere."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from cli.files import unpack
from jenga_core.errors import JengaError
from tests.cli.test_files import archive


@pytest.mark.parametrize("name", ["../outside", "inside/../../outside"])
def test_a_member_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    packed = tmp_path / "adapter.tar.gz"
    packed.write_bytes(archive((name, b"!")))
    with pytest.raises(JengaError, match="outside the destination"):
        unpack(packed, tmp_path / "adapter")
    assert not (tmp_path / "outside").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    packed = tmp_path / "adapter.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(JengaError, match="'link' is no plain file"):
        unpack(packed, tmp_path / "adapter")


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    packed = tmp_path / "adapter.tar.gz"
    packed.write_bytes(b"no archive")
    with pytest.raises(JengaError, match=r"adapter\.tar\.gz is not unpacked"):
        unpack(packed, tmp_path / "adapter")
