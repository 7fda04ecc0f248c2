"""Documents whose questions can only be answered from a few far blocks: facts hidden in novels.

    ... text ... The secret word of Clara Doyle is copper. ... text ...
    ... text ... The secret word of Hugo Marsh is violin. ... text ...
    Question: What is the secret word of Hugo Marsh? Answer: violin
    Question: What is the secret word of Clara Doyle? Answer: copper

What is measured is the dense model with the adapter, as everywhere: the share of held-out answers it gets right, and
their loss; and, of the training policy, the share of the facts whose blocks it keeps.

Words and names are drawn anew for each document, so an answer that is right was looked up. Facts lie anywhere before
the last quarter of the document, where their blocks are not recent; questions come in another order than facts.
Answers are one token, the only ones with a label.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from jenga_core.loss.segmented_cross_entropy import IGNORE
from jenga_core.patching.apply import JengaHandle


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    "Anna Boris Clara David Emma Felix Grace Hugo Irene Jacob Karen Louis Maria Nina Oscar Paula "
    "Robert Sarah Thomas Ursula Victor Wanda Albert Bella Carlos Diana Edgar Fiona George Helen Ivan Julia"
)
LAST_NAMES = _words(
    "Adams Baker Carter Doyle Ellis Foster Grant Harris Irwin Jones Keller Lopez Marsh Nolan Owens Parker "
    "Quinn Reed Stone Turner Vance Walker Young Abbott Blake Cole Drake Evans Frost Green Hughes Jordan"
)
WORDS = _words(
    "copper violin orange winter garden silver market candle river falcon marble pepper rocket island "
    "forest button bridge hammer purple desert carpet lemon tiger window coffee guitar pencil castle mirror ladder "
    "basket ocean planet rabbit thunder velvet whisper yellow bottle camera diamond engine feather ginger harbor iron "
    "jungle kitchen leather magnet needle olive palace quartz ribbon saddle temple umbrella valley wagon"
)


def fact(name: str, word: str) -> str:
    """What is hidden in the text."""
    return f" The secret word of {name} is {word}."


def question(name: str) -> str:
    """What is asked at the end, up to the answer's word."""
    return f"\nQuestion: What is the secret word of {name}? Answer:"


def document(text: str, tokenizer: PreTrainedTokenizerBase, *, tokens: int, facts: int, seed: int) -> dict[str, Any]:
    """A sequence of exactly `tokens` tokens: input_ids, labels (the answers alone), and `fact_tokens`, the positions
    of the hidden words, in the order of the questions.

    Args:
        text: the haystack; a stretch of it is taken at a place that the seed decides.
        facts: how many are hidden, and asked for.
    """
    draw = random.Random(seed)
    names = draw.sample([f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES], facts)
    single = [word for word in WORDS if len(_ids(tokenizer, f" {word}")) == 1]
    words = draw.sample(single, facts)
    asked = draw.sample(range(facts), facts)

    ending: list[int] = []
    ending_labels: list[int] = []
    for index in asked:
        prompt, answer = _ids(tokenizer, question(names[index])), _ids(tokenizer, f" {words[index]}")
        ending += prompt + answer
        ending_labels += [IGNORE] * len(prompt) + answer
    hidden = [(_ids(tokenizer, fact(name, word))) for name, word in zip(names, words, strict=True)]
    haystack_tokens = tokens - len(ending) - sum(map(len, hidden))
    if haystack_tokens < 4 * facts:
        raise ValueError(f"{facts} facts leave {haystack_tokens} of {tokens} tokens for the text; ask for fewer")

    stretch = _stretch(text, tokenizer, haystack_tokens, draw)
    places = sorted(draw.sample(_ends_of_sentences(stretch, tokenizer, facts, before=len(stretch) * 3 // 4), facts))
    ids: list[int] = []
    at = [0] * facts
    for index, (place, previous) in enumerate(zip(places, [0, *places], strict=False)):
        ids += stretch[previous:place] + hidden[index]
        at[index] = len(ids) - 2  # the word, before the full stop
    ids += stretch[places[-1] :]
    labels = [IGNORE] * len(ids) + ending_labels
    return {"input_ids": ids + ending, "labels": labels, "fact_tokens": [at[index] for index in asked]}


def documents(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, count: int, tokens: int, facts: int, seed: int
) -> list[dict[str, Any]]:
    """As many, from the texts in turn; another seed makes others."""
    return [
        document(texts[index % len(texts)], tokenizer, tokens=tokens, facts=facts, seed=seed * 1_000_003 + index)
        for index in range(count)
    ]


def answers(
    handle: JengaHandle, held_out: Sequence[dict[str, Any]], collate: Callable[..., dict[str, Tensor]]
) -> dict[str, float]:
    """Of the dense model in eval mode: the share of the answers that it ranks first, and their mean loss in nats."""
    parts = handle.parts
    device = next(parts.causal_lm.parameters()).device
    was_training = parts.causal_lm.training
    parts.causal_lm.eval()
    right, loss, labels = 0, 0.0, 0
    with torch.no_grad():
        for sequence in held_out:
            batch = {name: tensor.to(device) for name, tensor in collate([sequence]).items()}
            targets = batch.pop("labels")[:, 1:]
            hidden = parts.decoder(**batch, use_cache=False).last_hidden_state[:, :-1]
            rows = targets != IGNORE
            logits = parts.head(hidden[rows]).float()
            right += int((logits.argmax(dim=-1) == targets[rows]).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, targets[rows], reduction="sum"))
            labels += int(rows.sum())
    parts.causal_lm.train(was_training)
    return {"answer_accuracy": right / labels, "answer_loss": loss / labels}


def facts_kept_fraction(
    handle: JengaHandle, held_out: Sequence[dict[str, Any]], collate: Callable[..., dict[str, Tensor]]
) -> float:
    """Of the facts that are asked for, the share whose word lies in a block that the policy's last selection keeps."""
    device = next(handle.parts.causal_lm.parameters()).device
    kept, facts = 0, 0
    with torch.no_grad():
        for sequence in held_out:
            batch = {name: tensor.to(device) for name, tensor in collate([sequence]).items()}
            _, involvement = handle.run(batch, handle.config.selection)
            chosen_N = involvement.selections[max(involvement.selections)].kept_BN[0]
            blocks = involvement.blocks.block_of_token_BT[0, sequence["fact_tokens"]]
            kept += int(chosen_N[blocks].sum())
            facts += len(sequence["fact_tokens"])
    return kept / facts


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _stretch(text: str, tokenizer: PreTrainedTokenizerBase, tokens: int, draw: random.Random) -> list[int]:
    characters = 8 * tokens  # novels have 4 to 5 to a token
    start = draw.randrange(max(len(text) - characters, 1))
    ids = _ids(tokenizer, re.sub(r"\s+", " ", text[start : start + characters]))
    if len(ids) < tokens:
        raise ValueError(f"a text of {len(text)} characters is too short for {tokens} tokens")
    return ids[:tokens]


def _ends_of_sentences(ids: list[int], tokenizer: PreTrainedTokenizerBase, facts: int, *, before: int) -> list[int]:
    """Places behind a full stop, or any places where there are too few."""
    stops = {*_ids(tokenizer, "."), *_ids(tokenizer, "a.")[-1:]}
    places = [index + 1 for index, token in enumerate(ids[:before]) if token in stops]
    return places if len(places) >= facts else list(range(1, before))
