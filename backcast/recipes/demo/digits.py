"""The demo's image-text setting: real scans of digits with spoilt captions and images among them."""

from __future__ import annotations

from pathlib import Path

from backcast.data import Example, Examples
from backcast.data.corpora import digits_corpus
from backcast.data.corpora.digits import CAPTIONS, DigitsCorpus, DigitsTruth
from backcast.finetune import FinetuneConfig
from backcast.kernels import SketchSpec
from backcast.multimodal.mini_clip import write_mini_clip
from backcast.recipes.demo.setting import Plan, Truth


class Digits:
    """scikit-learn's 1,797 handwritten digits under a small CLIP; zero-shot accuracy on clean scans."""

    name = "digits"
    title = "Handwritten digits and their captions"
    metric = "zero-shot accuracy"
    higher_is_better = True
    bounds = (0.1, 1.0)

    def plan(self, quick: bool) -> Plan:
        budgets = ("5%", "10%", "20%", "40%") if quick else ("5%", "10%", "20%", "40%", "80%")
        return Plan(
            warmup=FinetuneConfig(steps=60, learning_rate=1e-3),
            scoring=FinetuneConfig(steps=100, learning_rate=2e-3),
            runs=FinetuneConfig(steps=150, batch_size=32, learning_rate=2e-3),
            spec=SketchSpec(kind="kron", dim=4096),
            budgets=budgets,
            fitted=("5%", "10%", "20%"),
            seeds=1 if quick else 3,
        )

    def corpus(self, seed: int) -> DigitsCorpus:
        return digits_corpus(seed)

    def write(self, folder: Path, seed: int, quick: bool) -> None:
        self.corpus(seed).write(folder)
        write_mini_clip(folder / "model", CAPTIONS, seed)

    def groups(self, target: Examples) -> list[str]:
        return [example.fields["caption"] for example in target]

    def truth(self, folder: Path) -> Truth:
        truth = DigitsTruth.load(folder / "truth.json")
        return Truth(
            kinds=[kind.replace("_", " ") for kind in truth.kinds],
            spoilt=truth.spoilt,
            pairs=frozenset(truth.pairs),
        )

    def text(self, example: Example) -> str:
        return example.fields["caption"]
