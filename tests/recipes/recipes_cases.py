"""The demo's two settings, small enough for a test: the same code, fewer rows and steps."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from backcast.data.corpora import Corpus, DigitsSizes, digits_corpus, docstrings_corpus
from backcast.data.corpora.digits import DigitsCorpus
from backcast.finetune import FinetuneConfig
from backcast.kernels import SketchSpec
from backcast.recipes.demo.digits import Digits
from backcast.recipes.demo.docstrings import Docstrings
from backcast.recipes.demo.setting import Plan

BUDGETS = ("10%", "20%", "40%")


def plan(warmup: int, scoring: int, runs: int) -> Plan:
    return Plan(
        warmup=FinetuneConfig(steps=warmup, batch_size=20, learning_rate=2e-3),
        scoring=FinetuneConfig(steps=scoring, batch_size=32, learning_rate=2e-3),
        runs=FinetuneConfig(steps=runs, batch_size=16, learning_rate=1e-3),
        spec=SketchSpec("kron", 512),
        budgets=BUDGETS,
        fitted=("10%", "20%"),
        seeds=1,
    )


class MiniDigits(Digits):
    name = "mini-digits"

    def plan(self, quick: bool) -> Plan:
        return plan(40, 40, 3 if quick else 6)

    def corpus(self, seed: int) -> DigitsCorpus:
        return digits_corpus(seed, DigitsSizes(warmup=40, target=30, pool=150, test=80))


class MiniDocstrings(Docstrings):
    """Three packages of the standard library, read in a moment."""

    name = "mini-docstrings"

    def plan(self, quick: bool) -> Plan:
        return plan(3, 4, 2)

    def corpus(self, seed: int, quick: bool) -> Corpus:
        library = Path(sysconfig.get_path("stdlib"))
        roots = {name: library / name for name in ("asyncio", "email", "http")}
        return docstrings_corpus(
            "asyncio", seed, pool_size=60, target_size=8, test_size=10, warmup_size=20, roots=roots
        )
