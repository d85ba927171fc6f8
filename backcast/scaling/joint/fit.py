"""A table of runs at several n and several values of another input → a joint law."""

from __future__ import annotations

import math
from collections.abc import Sequence

from backcast.errors import InputError
from backcast.scaling.joint.epochs import epochs
from backcast.scaling.joint.form import Input
from backcast.scaling.joint.law import JointLaw, checked
from backcast.scaling.joint.posterior import Cells, fit_form
from backcast.scaling.joint.share import share
from backcast.scaling.joint.size import size
from backcast.scaling.laws import LAWS
from backcast.scaling.stacking import stack
from backcast.scaling.table import Observation, Table, observations

#: The other inputs that there are laws for; a new one is a file and a line here.
INPUTS: dict[str, Input] = {kind.name: kind for kind in (epochs, size, share)}
#: The one-dimensional laws that the effective data go into. A Hill curve is the power law that starts from a plateau,
#: as fine-tuning does.
CURVES = ("power", "hill")
#: Fewest cells that a joint law is fitted to.
FEWEST = 4


def fit_joint_law(
    table: Table,
    by: str = "epochs",
    n: str = "n",
    value: str = "value",
    seed: str = "seed",
    se: str = "se",
    form: str | None = None,
    higher_is_better: bool = False,
    bounds: tuple[float, float] | None = None,
) -> JointLaw:
    """Fit every joint form of an input to a table of runs, and weigh them by how well each foresaw the dearer cells.

    The same table, in any order of its rows, gives the same law. A fit takes O(cells) time.

    Args:
        table: as in `backcast.scaling.fit_law`, with a column for the other input.
        by: that column.
        n, value, seed, se: as in `backcast.scaling.fit_law`.
        form: what the other input is: ``"epochs"``, ``"size"`` or ``"share"``; None when ``by`` says it.
        higher_is_better, bounds: as in `backcast.scaling.fit_law`.

    Raises:
        InputError: for rows that cannot be read, fewer than `FEWEST` cells, one value of n or of the other input alone,
            values outside ``bounds``, and unknown forms.
    """
    kind = INPUTS.get(by if form is None else form)
    if kind is None:
        raise InputError(
            f"no joint law for {by if form is None else form!r}; name what the column {by!r} is with form: "
            f"{', '.join(INPUTS)}"
        )
    runs = [(_other(run, by, kind), run) for run in observations(table, n, value, seed, se, group=by)]
    low, high = (-math.inf, math.inf) if bounds is None else bounds
    _check(runs, by, low, high)
    sign = -1.0 if higher_is_better else 1.0
    cells = Cells.of(runs, kind, sign, best=min(sign * low, sign * high))
    posteriors = [fit_form(joint, LAWS[law], cells) for joint in kind.forms for law in CURVES]
    shares = stack([p.scores for p in posteriors], [p.log_evidence for p in posteriors])
    weights = dict(zip([p.name for p in posteriors], shares.tolist(), strict=True))
    return JointLaw(by, cells, posteriors, weights, higher_is_better, (low, high))


def _other(run: Observation, by: str, kind: Input) -> float:
    try:
        return float(checked(by, run.group, kind.share)[0])
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{by} is {run.group!r} at n = {run.n:g}; it must be a number") from None


def _check(runs: Sequence[tuple[float, Observation]], by: str, low: float, high: float) -> None:
    if not low < high:
        raise InputError(f"bounds {low:g} to {high:g} are not a range; give the lower end first")
    outside = next((run for _, run in runs if not low <= run.value <= high), None)
    if outside is not None:
        raise InputError(
            f"value {outside.value:g} at n = {outside.n:g} is outside the bounds {low:g} to {high:g}; correct either"
        )
    sizes, others = {run.n for _, run in runs}, {other for other, _ in runs}
    for name, values in (("n", sizes), (by, others)):
        if len(values) < 2:
            raise InputError(
                f"the runs are all at {name} = {min(values):g}; a joint law needs several values of it"
            )
    cells = {(run.n, other) for other, run in runs}
    if len(cells) < FEWEST:
        raise InputError(
            f"{len(cells)} combinations of n and {by}; a joint law needs at least {FEWEST}, better nine"
        )
