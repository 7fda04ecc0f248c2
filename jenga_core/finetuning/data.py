"""A training file to sequences of token ids with labels, at most one context long.

    text         tokens + end-of-text, split into windows of the context length; every token is a label. The last two
                 windows are of one length where the last would be shorter than half a context: a step that learns
                 from a few tokens is worth as much as any other
    chat         the model's chat template; labels are the assistant's messages
    completion   prompt + completion + end-of-text; labels are the completion

Chat and completion rows longer than the context are cut at the end and counted; a cut row without any label left is
dropped and counted. Labels are not shifted (transformers' convention), -100 carries no loss.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from jenga_core.errors import DataError
from jenga_core.loss.segmented_cross_entropy import IGNORE
from jenga_core.training_rows import ChatRow, CompletionRow, Row, TextRow, read_rows

if TYPE_CHECKING:
    from datasets import Dataset

SHORTEST_TOKENS = 2
"""A sequence of one token has nothing to predict."""


@dataclass(frozen=True)
class Encoded:
    """An encoded file."""

    sequences: Dataset
    """Columns input_ids, labels (lists of int), row (index in the file), cut (bool)."""

    rows: int
    tokens: int
    label_tokens: int
    """Tokens that carry loss."""

    cut_rows: int
    """Chat and completion rows that were longer than the context."""

    dropped_rows: int
    """Rows that left no sequence with a label."""


def encode_file(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, context_length_tokens: int, cache_folder: Path
) -> Encoded:
    """Encode a JSONL file; sequences lie in Arrow files under `cache_folder`, which is emptied first.

    Raises:
        DataError: a row is malformed, the tokenizer has no end-of-text token, or no chat template but a row is a chat,
            or nothing is left.
    """
    from datasets import Dataset, Features, List, Value

    if tokenizer.eos_token_id is None:
        raise DataError("the model's tokenizer has no end-of-text token, which every text ends with; set its eos_token")
    shutil.rmtree(cache_folder, ignore_errors=True)
    features = Features(
        {"input_ids": List(Value("int32")), "labels": List(Value("int32")), "row": Value("int64"), "cut": Value("bool")}
    )
    counts = {"rows": 0, "sequences": 0}

    def sequences() -> Iterator[dict[str, Any]]:
        with path.open("rb") as lines:
            for number, row in enumerate(read_rows(lines)):
                counts["rows"] += 1
                try:
                    for sequence in encode(row, tokenizer, context_length_tokens):
                        counts["sequences"] += 1
                        yield {**sequence, "row": number}
                except DataError as error:
                    raise DataError(f"Row {number + 1}: {error.message}") from error
        if not counts["sequences"]:
            raise DataError(
                f"no row of {counts['rows']} leaves a sequence with a label in {context_length_tokens} tokens; raise "
                "context_length_tokens, or give longer rows"
            )

    dataset = _from_generator(Dataset, sequences, features, cache_folder)
    arrow = dataset.data.table
    labels = [column.flatten().to_numpy() for column in arrow.column("labels").chunks]
    return Encoded(
        sequences=dataset,
        rows=counts["rows"],
        tokens=sum(len(chunk) for chunk in labels),
        label_tokens=sum(int((chunk != IGNORE).sum()) for chunk in labels),
        cut_rows=sum(dataset["cut"]),
        dropped_rows=counts["rows"] - len(set(dataset["row"])),
    )


def _from_generator(dataset_type: Any, generator: Any, features: Any, cache_folder: Path) -> Dataset:
    from datasets.exceptions import DatasetGenerationError

    try:
        return dataset_type.from_generator(
            generator, features=features, cache_dir=str(cache_folder), fingerprint=cache_folder.name
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise


def encode(row: Row, tokenizer: PreTrainedTokenizerBase, context_length_tokens: int) -> Iterator[dict[str, Any]]:
    """The sequences of one row: several windows of a text; one, or none, of a chat or completion."""
    if isinstance(row, TextRow):
        ids = [*tokenizer(row.text).input_ids, tokenizer.eos_token_id]
        for start, end in pairwise(_window_borders(len(ids), context_length_tokens)):
            window = ids[start:end]
            if len(window) >= SHORTEST_TOKENS:
                yield {"input_ids": window, "labels": window, "cut": False}
        return
    ids, labels = _chat(row, tokenizer) if isinstance(row, ChatRow) else _completion(row, tokenizer)
    cut = len(ids) > context_length_tokens
    ids, labels = ids[:context_length_tokens], labels[:context_length_tokens]
    if any(label != IGNORE for label in labels[1:]):
        yield {"input_ids": ids, "labels": labels, "cut": cut}


def _window_borders(tokens: int, context: int) -> list[int]:
    borders = [*range(0, tokens, context), tokens]
    if len(borders) > 2 and 2 * (borders[-1] - borders[-2]) < context:
        borders[-2] = (borders[-3] + borders[-1] + 1) // 2
    return borders


def _completion(row: CompletionRow, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    prompt: list[int] = tokenizer(row.prompt).input_ids
    completion = [*tokenizer(row.completion, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return prompt + completion, [IGNORE] * len(prompt) + completion


def _chat(row: ChatRow, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Render the conversation, find the characters that the assistant wrote, and label their tokens.

    A message's characters are those that the rendered text grows by when it is added, after the template's own opening
    of an assistant turn.
    """
    if tokenizer.chat_template is None:
        raise DataError("the model has no chat template; use 'text' or 'prompt'/'completion' rows")
    messages = list(row.messages)
    whole = _render(tokenizer, messages, open_turn=False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if index:
            before = _render(tokenizer, messages[:index], open_turn=True)
        else:  # templates refuse to render nothing; what they write before the first message is none of its words
            before = whole[: max(whole.find(message["content"]), 0)]
        after = _render(tokenizer, messages[: index + 1], open_turn=False)
        if not (whole.startswith(before) and whole.startswith(after)):
            raise DataError("the model's chat template rewrites earlier messages; use 'prompt'/'completion' rows")
        spans.append((len(before), len(after)))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        token if any(first <= start < last for first, last in spans) else IGNORE
        for token, (start, _) in zip(encoded.input_ids, encoded.offset_mapping, strict=True)
    ]
    return encoded.input_ids, labels


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], *, open_turn: bool) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn)
    return text


class PadRight:
    """Collate sequences into a batch: padded on the right, masked by length and never by token id.

    Many tokenizers pad with their end token, so an id cannot tell padding from the end of a text.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, sequences: list[dict[str, Any]]) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels: int64 B x T, T the longest sequence."""
        B, T = len(sequences), max(len(sequence["input_ids"]) for sequence in sequences)
        batch = {
            "input_ids": torch.full((B, T), self.pad_token_id),
            "attention_mask": torch.zeros(B, T, dtype=torch.long),
            "labels": torch.full((B, T), IGNORE),
        }
        for index, sequence in enumerate(sequences):
            length = len(sequence["input_ids"])
            batch["input_ids"][index, :length] = torch.as_tensor(sequence["input_ids"])
            batch["attention_mask"][index, :length] = 1
            batch["labels"][index, :length] = torch.as_tensor(sequence["labels"])
        return batch


def collator(tokenizer: PreTrainedTokenizerBase) -> PadRight:
    """For this tokenizer; one without a pad token pads with its end token."""
    pad = tokenizer.pad_token_id
    return PadRight(tokenizer.eos_token_id if pad is None else pad)
