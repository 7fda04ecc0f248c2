"""Groups of kernel rows: what is kept, what is measured again. No kernel runs here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kernels

STARTED: list[str] = []


def group(name: str, rows: int, fails: bool = False) -> Any:
    def measure() -> Iterator[dict[str, Any]]:
        STARTED.append(name)
        for number in range(rows):
            yield {"kernel": f"{name} {number}", "p50_ms": 1.5}
        if fails:
            raise RuntimeError("out of luck")

    return measure


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    STARTED.clear()
    monkeypatch.setattr(kernels, "GROUPS", {"a": group("a", 2), "b": group("b", 1)})
    monkeypatch.setenv("JENGA_COMMIT", "aaaaaaa")
    return tmp_path / "kernels.json"


def kept(out: Path) -> list[tuple[str, bool]]:
    return [(row["kernel"], row["is_complete"]) for row in json.loads(out.read_text())]


def test_rows_of_all_groups_are_kept_and_complete(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main(["--out", str(out)]) == 0
    assert kept(out) == [("a 0", True), ("a 1", True), ("b 0", True)]
    assert "a 0, p50_ms 1.5" in capsys.readouterr().out


def test_complete_groups_are_not_measured_again(out: Path) -> None:
    kernels.main(["--out", str(out), "--only", "a"])
    kernels.main(["--out", str(out)])
    assert STARTED == ["a", "b"]
    kernels.main(["--out", str(out), "--only", "b", "--again"])
    assert STARTED == ["a", "b", "b"]
    assert len(kept(out)) == 3


def test_another_commit_measures_anew(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.main(["--out", str(out), "--only", "a"])
    monkeypatch.setenv("JENGA_COMMIT", "bbbbbbb")
    kernels.main(["--out", str(out), "--only", "a"])
    assert STARTED == ["a", "a"]


def test_a_group_that_breaks_off_keeps_its_rows_and_is_measured_again(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "GROUPS", {"a": group("a", 1, fails=True)})
    with pytest.raises(RuntimeError, match="out of luck"):
        kernels.main(["--out", str(out), "--only", "a"])
    assert kept(out) == [("a 0", False)]
    monkeypatch.setattr(kernels, "GROUPS", {"a": group("a", 2)})
    kernels.main(["--out", str(out), "--only", "a"])
    assert kept(out) == [("a 0", True), ("a 1", True)]
