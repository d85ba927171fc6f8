"""Words in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from backcast.attribution.problem import Problem
from backcast.data import Examples
from backcast.errors import InputError
from backcast.progress import progress

#: What of an example is text, in the order in which it is read.
TEXTS = ("messages", "prompt", "response", "chosen", "rejected", "text", "caption")
#: How soon a word's repetition saturates, and how much longer texts are held back.
K1, B = 1.5, 0.75


def bm25(problem: Problem) -> np.ndarray:
    """score(x, z) = Σ_{w ∈ z} idf(w) tf(w, x) / (tf(w, x) + k₁ (1 − b + b |x| / avg|x|)), z's words taken as often as
    they occur, with idf(w) = log(1 + (n − n_w + ½)/(n_w + ½)) over the n training examples, n_w of which hold w.

    Words are runs of letters, digits and underscores, in lower case. A group's score is the mean of its members'. It
    needs no model.

    Raises:
        InputError: no training example holds a word.

    Sources: Robertson & Zaragoza 2009, The probabilistic relevance framework: BM25 and beyond; Lucene's variant, as in
    Lù 2024, BM25S. For attribution: Akyürek et al. 2022, Towards tracing factual knowledge in language models back to
    the training data, where it beat gradient methods.
    """
    import bm25s

    train, target = (_words(examples) for examples in problem.examples)
    if not any(train):
        raise InputError(f"method {problem.method!r} compares words, and no training example holds any")
    index = bm25s.BM25(k1=K1, b=B, method="lucene")
    index.index(train, show_progress=False)
    scores = np.zeros((len(train), len(problem.names)))
    with progress(problem.method, len(target)) as done:
        for words, column in zip(target, problem.member.T, strict=True):
            if words:
                of_member = index.get_scores(words)
                for g in np.flatnonzero(column):
                    scores[:, g] += column[g] * of_member
            done(1)
    return scores


def _words(examples: Examples) -> Any:
    """Each example's words, in order."""
    import bm25s

    texts = ["\n".join(_text(e.fields[name]) for name in TEXTS if name in e.fields) for e in examples]
    return bm25s.tokenize(texts, token_pattern=r"\w+", stopwords=None, return_ids=False, show_progress=False)


def _text(value: Any) -> str:
    """A field's text, or that of its messages."""
    return value if isinstance(value, str) else "\n".join(message["content"] for message in value)
