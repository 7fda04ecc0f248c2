"""`jenga models add PATH`: a local folder becomes a model that jobs may name, once, completely, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from cli.main import app
from jenga_core.errors import NotFoundError
from jenga_core.service.db.session import Database
from jenga_core.service.models import registry
from jenga_core.service.models.inspection import inspect_folder
from jenga_core.service.settings import Settings

CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "max_position_embeddings": 256, "hidden_size": 8}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JENGA_DATA_DIR", "JENGA_DATABASE_URL", "JENGA_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {f"model.layers.{layer}.weight": random.normal(size=(8, 8)).astype("float32") for layer in range(2)}


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A model folder with the files that matter, and two that must not come along."""
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    (path / "pytorch_model.bin").write_bytes(b"a pickle")
    (path / "modeling_tiny.py").write_text("raise SystemExit")
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def add(source: Path | str, data_dir: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["models", "add", str(source), "--data-dir", str(data_dir), *options])


def test_a_folder_is_copied_without_pickles_and_code(folder: Path, data_dir: Path) -> None:
    result = add(folder, data_dir)
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(data_dir / "models")) == ["tiny"]
    assert sorted(os.listdir(data_dir / "models/tiny")) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_its_row_holds_what_the_folder_says(folder: Path, data_dir: Path) -> None:
    assert add(folder, data_dir, "--name", "me/tiny").exit_code == 0
    settings = Settings(data_dir=data_dir)
    database = Database(settings.database)
    with database.reading() as session:
        entry = registry.get(session, "me/tiny")
    database.dispose()
    assert (entry.model_type, entry.num_hidden_layers, entry.context_length_tokens) == ("llama", 2, 256)
    assert entry.parameters == 2 * 8 * 8
    assert entry.fingerprint == inspect_folder(folder)["fingerprint"]
    assert (registry.folder_of(settings, entry) / "model.safetensors").is_file()


def test_adding_it_again_does_nothing_and_says_so(folder: Path, data_dir: Path) -> None:
    add(folder, data_dir)
    before = (data_dir / "models/tiny").stat().st_ino
    result = add(folder, data_dir)
    assert (result.exit_code, result.output.strip()) == (0, "tiny is already there")
    assert (data_dir / "models/tiny").stat().st_ino == before


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused_and_leaves_nothing(folder: Path, data_dir: Path, missing: str) -> None:
    (folder / missing).unlink()
    result = add(folder, data_dir)
    assert result.exit_code == 1
    assert missing.replace("model.", "*.") in result.stderr
    assert os.listdir(data_dir / "models") == []
    with pytest.raises(NotFoundError):
        _get(data_dir, "tiny")


def test_a_truncated_weights_file_is_refused(folder: Path, data_dir: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    result = add(folder, data_dir)
    assert result.exit_code == 1
    assert "not a complete safetensors file" in result.stderr
    assert os.listdir(data_dir / "models") == []


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**CONFIG, "model_type": "gpt2"}, "'gpt2' is not supported; supported are llama, "),
        ({"model_type": "gemma3", "text_config": CONFIG, "vision_config": {}}, "a Gemma 3 that sees images is not"),
    ],
)
def test_an_unsupported_architecture_is_refused(folder: Path, data_dir: Path, config: object, reason: str) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    result = add(folder, data_dir)
    assert result.exit_code == 1
    assert reason in " ".join(result.stderr.split())
    assert os.listdir(data_dir / "models") == []


@pytest.mark.parametrize("source", ["no-such-model", "./no/such/folder"])
def test_an_unknown_source_is_refused(source: str, data_dir: Path) -> None:
    result = add(source, data_dir)
    assert result.exit_code == 1
    assert source in result.stderr


def test_the_fingerprint_is_of_the_weights_not_of_the_files(
    folder: Path, tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "config.json").write_text(
        json.dumps({**CONFIG, "_name_or_path": "elsewhere", "transformers_version": "9"})
    )
    for number, (name, tensor) in enumerate(reversed(tensors.items())):
        save_file({name: tensor}, sharded / f"model-{number}.safetensors")
    assert inspect_folder(sharded)["fingerprint"] == inspect_folder(folder)["fingerprint"]


@pytest.mark.parametrize("change", ["weights", "config"])
def test_the_fingerprint_changes_with_what_is_computed(
    folder: Path, tensors: dict[str, np.ndarray], change: str
) -> None:
    before = inspect_folder(folder)["fingerprint"]
    if change == "weights":
        next(iter(tensors.values()))[0, 0] += 1
        save_file(tensors, folder / "model.safetensors")
    else:
        (folder / "config.json").write_text(json.dumps({**CONFIG, "rope_theta": 5.0}))
    assert inspect_folder(folder)["fingerprint"] != before


def _get(data_dir: Path, name: str) -> None:
    database = Database(Settings(data_dir=data_dir).database)
    try:
        with database.reading() as session:
            registry.get(session, name)
    finally:
        database.dispose()
