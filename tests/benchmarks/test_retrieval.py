"""Documents whose facts are where they are said to be, and whose labels are their answers."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.retrieval import FIRST_NAMES, LAST_NAMES, WORDS, document

TEXT = "the sea was calm . and the ship went on . " * 400


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token per word."""
    known = [
        *FIRST_NAMES,
        *LAST_NAMES,
        *WORDS,
        *TEXT.split(),
        *["What", "is", "the", "secret", "word", "of", "?", ":", ".", "Question", "Answer"],
    ]
    known += [".", "Question", "Answer", "The"]
    vocabulary = {word: index for index, word in enumerate(["<unk>", *dict.fromkeys(known)])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def test_answers_are_the_hidden_words_in_the_order_of_the_questions(tokenizer: PreTrainedTokenizerFast) -> None:
    made = document(TEXT, tokenizer, tokens=400, facts=5, seed=1)
    ids, labels = made["input_ids"], made["labels"]
    assert len(ids) == len(labels) == 400
    answers = [label for label in labels if label != -100]
    assert [ids[at] for at in made["fact_tokens"]] == answers
    assert all(labels[at] == ids[at] for at in range(400) if labels[at] != -100)
    assert len(set(answers)) == 5
    assert ids.count(0) <= 1  # every word is known but the one that the stretch may begin within
    assert sorted(made["fact_tokens"]) != made["fact_tokens"]
    text_tokens = 400 - 5 * (14 + 9)  # less questions and facts
    assert max(made["fact_tokens"]) < text_tokens * 3 // 4 + 5 * 9


def test_a_seed_decides(tokenizer: PreTrainedTokenizerFast) -> None:
    first = document(TEXT, tokenizer, tokens=300, facts=3, seed=1)
    assert document(TEXT, tokenizer, tokens=300, facts=3, seed=1) == first
    assert document(TEXT, tokenizer, tokens=300, facts=3, seed=2) != first


def test_what_does_not_fit_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"5 facts leave .* of 120 tokens for the text; ask for fewer"):
        document(TEXT, tokenizer, tokens=120, facts=5, seed=0)
    with pytest.raises(ValueError, match="too short for"):
        document("calm . " * 30, tokenizer, tokens=300, facts=2, seed=0)
