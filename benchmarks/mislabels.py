"""Which scores find wrong labels?

A tenth of the labels of `digits-logistic` and `cifar-cnn` is changed, a model is trained on them, and the area under
the ROC curve says how well each score tells the changed rows from the others: a low mean score for the held-out
targets, or, for those that do not depend on targets, a high one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import lds_settings as settings
import numpy as np
import torch
from common import Row, arguments, write
from lds_settings import Setting, train
from sklearn.metrics import roc_auc_score
from torch import nn

from backcast.attribution import attribute, collect
from backcast.data import Examples
from backcast.kernels import SketchSpec

SHARE, SEEDS, DIM = 0.1, 3, 4096
#: name → method, what is sketched (None where examples are given), and the sign with which a high value means wrong.
METHODS = {
    "grad_dot": ("grad_dot", "loss", -1),
    "grad_cos": ("grad_cos", "loss", -1),
    "datainf": ("datainf", "loss", -1),
    "influence": ("influence", "loss", -1),
    "influence of outputs": ("influence", "output", -1),
    "trak": ("trak", "output", -1),
    "ekfac": ("ekfac", None, -1),
    "grad_norm": ("grad_norm", "loss", 1),
    "loss": ("loss", None, 1),
    "el2n": ("el2n", None, 1),
    "random": ("random", None, 1),
}


def spoilt(setting: Setting, seed: int) -> tuple[Setting, np.ndarray]:
    """The setting with some labels changed, and which."""
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(setting.train), dtype=bool)
    wrong[rng.permutation(len(wrong))[: round(SHARE * len(wrong))]] = True
    shifts = np.where(wrong, rng.integers(1, 10, len(wrong)), 0).tolist()
    rows = [
        {**example.fields, "label": (example.fields["label"] + shift) % 10}
        for example, shift in zip(setting.train, shifts, strict=True)
    ]
    return replace(setting, train=Examples.from_fields(rows)), wrong


def found(setting: Setting, model: nn.Module, wrong: np.ndarray) -> dict[str, float]:
    """Each method's AUROC."""
    out: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        stores = {
            of: [
                collect(
                    model, setting.task, rows, Path(folder) / f"{of}-{side}", of=of, spec=SketchSpec(dim=DIM)
                )
                for side, rows in (("train", setting.train), ("target", setting.target))
            ]
            for of in ("loss", "output")
        }
        for name, (method, of, sign) in METHODS.items():
            if of is None:
                scores = attribute(setting.train, setting.target, method, model=model, task=setting.task)
            else:
                scores = attribute(*stores[of], method)
            out[name] = float(roc_auc_score(wrong, sign * scores.total()))
    return out


def main() -> None:
    asked = arguments(__doc__ or "")
    torch.set_num_threads(1)
    rows: list[Row] = []
    whole = [settings.digits_logistic(asked.quick)]
    if asked.data is not None:
        whole.append(settings.cifar_cnn(asked.data, asked.quick))
    for setting in whole:
        runs = []
        for seed in range(1 if asked.quick else SEEDS):
            changed, wrong = spoilt(setting, seed)
            runs.append(found(changed, train(changed, seed), wrong))
        for name in METHODS:
            values = [run[name] for run in runs]
            row: Row = {"setting": setting.name, "method": name, "auroc": float(np.mean(values))}
            rows.append({**row, "low": min(values), "high": max(values)})
    write("mislabels", rows, asked.json)


if __name__ == "__main__":
    main()
