"""What an estimate counts is what the trainer will make of the file, without loading what the trainer loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jenga_core.config import JengaConfig
from jenga_core.errors import ConfigError, DataError
from jenga_core.finetuning.data import encode_file
from jenga_core.finetuning.trainer import make_plan
from jenga_core.service.estimates import rows as rows_module
from jenga_core.service.estimates import tokens as tokens_module
from jenga_core.service.estimates.estimate import require_sequences, steps_of
from jenga_core.service.estimates.rows import count_file
from jenga_core.service.estimates.tokens import TokenCounter
from jenga_core.training_rows import ChatRow, parse_row
from tests.support.tiny import tiny_tokenizer


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


ROWS: list[dict[str, Any]] = [
    {"text": "a short text"},
    {"text": "x" * 31},  # with its end, one window and nothing left
    {"text": "x" * 32},  # and one token left, which nobody learns from
    {"text": "words and more words, " * 20},
    {"prompt": "2 + 2 =", "completion": " 4"},
    {"prompt": "", "completion": "no prompt"},
    {"prompt": "p" * 60, "completion": "cut away whole"},
    {"prompt": "p" * 20, "completion": "c" * 40},
    chat(("user", "hello"), ("assistant", "hi there")),
    chat(("assistant", "speaks first"), ("user", "so it does")),
    chat(("user", "u" * 40), ("assistant", "never seen")),
    chat(("system", "be brief"), ("user", "why?"), ("assistant", "a" * 40), ("user", "ok"), ("assistant", "b")),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as far as tokens go."""
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def written(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("context", [32, 48, 1024])
def test_counts_are_the_trainers(tmp_path: Path, folder: Path, context: int) -> None:
    path = written(tmp_path, ROWS)
    counted = count_file(path, TokenCounter(folder), context_length_tokens=context)
    trained = encode_file(path, tiny_tokenizer(), context_length_tokens=context, cache_folder=tmp_path / "cache")
    assert (counted.rows, counted.counted_rows, counted.errors) == (len(ROWS), len(ROWS), [])
    assert (counted.tokens, counted.sequences) == (trained.tokens, len(trained.sequences))
    whole = sum(len(ids) for ids in _all_tokens())
    assert counted.tokens + counted.tokens_cut == whole
    assert sum(counted.histogram.values()) == len(ROWS)


def _all_tokens() -> list[list[int]]:
    """Every row as one sequence, however long."""
    tokenizer, ids = tiny_tokenizer(), []
    for row in ROWS:
        if "text" in row:
            ids.append([*tokenizer(row["text"]).input_ids, tokenizer.eos_token_id])
        elif "prompt" in row:
            completion = tokenizer(row["completion"], add_special_tokens=False).input_ids
            ids.append([*tokenizer(row["prompt"]).input_ids, *completion, tokenizer.eos_token_id])
        else:
            text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
            ids.append(tokenizer(text, add_special_tokens=False).input_ids)
    return ids


@pytest.mark.parametrize(
    "hyperparameters",
    [
        {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"},
        {"n_epochs": 5, "batch_size": 4, "learning_rate_multiplier": 2},
    ],
)
@pytest.mark.parametrize("config", [{}, {"max_steps": 7}, {"gradient_accumulation_steps": 3}])
def test_steps_are_the_trainers(hyperparameters: dict[str, Any], config: dict[str, Any]) -> None:
    for sequences in (1, 2, 100):
        parsed = JengaConfig.model_validate(config)
        plan = make_plan(parsed, hyperparameters, num_sequences=sequences)
        assert steps_of(parsed, hyperparameters, sequences) == plan.total_steps


def test_wrong_rows_are_listed_and_the_others_counted(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n{"text": ""}\nnot json\n{"text": "good"}\n' + b'{"a": 1}\n' * 50)
    counted = count_file(path, TokenCounter(folder), context_length_tokens=32)
    assert counted.rows == 54
    assert counted.errors[:2] == [(3, "'text' is empty"), counted.errors[1]]
    assert counted.errors[1][0] == 4
    assert (len(counted.errors), counted.wrong_rows) == (rows_module.MAX_ERRORS, 52)
    assert counted.sequences == 2


def test_a_chat_without_a_template_is_a_wrong_row(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "model")
    path = written(tmp_path, [ROWS[0], ROWS[8], ROWS[0]])
    counted = count_file(path, TokenCounter(tmp_path / "model"), context_length_tokens=32)
    assert [row for row, _ in counted.errors] == [2]
    assert "no chat template" in counted.errors[0][1]
    assert counted.sequences == 2


def test_a_large_file_is_counted_here_and_there(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, [{"text": "x" * (20 + number % 7)} for number in range(1000)])
    whole = count_file(path, TokenCounter(folder), context_length_tokens=64)
    monkeypatch.setattr(rows_module, "COUNTED_BYTES", path.stat().st_size // 10)
    some = count_file(path, TokenCounter(folder), context_length_tokens=64)
    assert (some.rows, whole.counted_rows) == (1000, 1000)
    assert 80 <= some.counted_rows <= 100
    assert some.tokens == pytest.approx(whole.tokens, rel=0.03)
    assert some.sequences == pytest.approx(whole.sequences, rel=0.03)


def test_nothing_to_learn_from_is_an_error(tmp_path: Path, folder: Path) -> None:
    path = written(tmp_path, [{"prompt": "p" * 60, "completion": "cut away whole"}])
    counted = count_file(path, TokenCounter(folder), context_length_tokens=32)
    with pytest.raises(DataError, match="32 tokens"):
        require_sequences(counted, 32)


_TEMPLATES = [
    "{% for m in messages %}{{ bos_token }}{{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "{%- for m in messages %}\n    {%- if loop.first %}{% continue %}{% endif %}\n  {{ m.role }}\n{%- endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{{ messages | tojson }}{% if add_generation_prompt %}<a>{% endif %}",
    "{% set ns = namespace(x=0) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}",
]


@pytest.mark.parametrize("template", _TEMPLATES)
def test_templates_render_as_transformers_renders_them(tmp_path: Path, template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token, tokenizer.chat_template = "<s>", template
    tokenizer.save_pretrained(tmp_path)
    row = parse_row(json.dumps(chat(("user", "naïve <b>"), ("assistant", " yes "), ("user", "ok"))).encode())
    assert isinstance(row, ChatRow)
    rendered = tokenizer.apply_chat_template(list(row.messages), tokenize=False)
    (whole, _), _ = TokenCounter(tmp_path)._parts(row)
    assert whole == rendered


def test_a_template_that_refuses_names_the_row(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    tokenizer.save_pretrained(tmp_path / "model")
    counted = count_file(written(tmp_path, [ROWS[8]]), TokenCounter(tmp_path / "model"), context_length_tokens=32)
    assert "roles must alternate" in counted.errors[0][1]


def test_a_template_cannot_reach_out(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    tokenizer.save_pretrained(tmp_path / "model")
    counted = count_file(written(tmp_path, [ROWS[8]]), TokenCounter(tmp_path / "model"), context_length_tokens=32)
    assert "chat template refuses" in counted.errors[0][1]


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        TokenCounter(tmp_path)


def test_counting_leaves_the_model_stack_out() -> None:
    code = (
        "import sys, jenga_core.service.estimates.rows, jenga_core.service.estimates.estimate\n"
        "sys.exit(str({'torch', 'transformers'} & set(sys.modules)) if 'transformers' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_long_text_is_encoded_in_pieces(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["word " * 200, "x" * 999, " ", "", "ends with a space " * 30]
    counter = TokenCounter(folder)
    whole = counter._lengths([(text, special) for text in texts for special in (True, False)])
    monkeypatch.setattr(tokens_module, "PIECE_CHARACTERS", 64)
    monkeypatch.setattr(tokens_module, "AT_ONCE", 3)
    assert counter._lengths([(text, special) for text in texts for special in (True, False)]) == whole
    assert "".join(tokens_module._pieces(texts[0])) == texts[0]
    assert max(map(len, tokens_module._pieces(texts[0]))) < 128
