"""What a method's name stands for: ``dedup(threshold=0.95) | quota(source) | facility_location``."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from backcast.errors import InputError
from backcast.selectors.filters import FILTERS
from backcast.selectors.methods import DIVIDERS, SELECTORS
from backcast.selectors.selection import Filter, Selector

_STAGE = re.compile(r"(\w*)\s*(?:\((.*)\))?", re.DOTALL)
_BAR = re.compile(r"\|(?![^(]*\))")  # one that stands in no parentheses


@dataclass(frozen=True)
class Call:
    """A stage as it was written: its name, and its parameters in order and by name."""

    name: str
    values: tuple[Any, ...]
    named: Mapping[str, Any]


def parse_calls(method: str) -> list[Call]:
    """The stages of a method, in order.

    Parameters are Python literals; a bare word is a string, so that ``quota(source)`` is ``quota("source")``.

    Raises:
        InputError: something that is not written so, or a stage that is named twice.
    """
    calls = [_call(text.strip(), method) for text in _BAR.split(method)]
    names = [call.name for call in calls]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"method {method!r}: {twice!r} is there twice; once is enough")
    return calls


def _call(text: str, method: str) -> Call:
    match = _STAGE.fullmatch(text)
    try:
        if not match:
            raise ValueError
        parsed = ast.parse(f"f({match[2] or ''})", mode="eval").body
        if not (isinstance(parsed, ast.Call) and isinstance(parsed.func, ast.Name)):
            raise ValueError
        named = {str(keyword.arg): _value(keyword.value) for keyword in parsed.keywords}
        if len(named) < len(parsed.keywords):
            raise ValueError
        return Call(match[1], tuple(map(_value, parsed.args)), named)
    except (ValueError, TypeError, SyntaxError):
        raise InputError(
            f"method {method!r}: {text!r} is not a stage; write NAME or NAME(PARAMETER=VALUE), joined by |"
        ) from None


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


#: The methods that look at the parts of the scores.
BY_PARTS = frozenset({"modality_balance", "image_needed", "one_sided_harm"})

#: The methods that learn from training.
BY_TRIAL = frozenset({"policy", "greedy_law"})


@dataclass(frozen=True)
class Method:
    """Filters, and the selector that sees what they leave.

    Attributes:
        name: the stages' names, joined by ``" | "``.
        params: stage → its parameters, defaults included.
        filters: name → filter, in order.
        selector: the last stage, within the dividers before it.
    """

    name: str
    params: Mapping[str, Mapping[str, Any]]
    filters: Mapping[str, Filter]
    selector: Selector

    @classmethod
    def parse(cls, method: str, params: Mapping[str, Any] | None = None) -> Method:
        """The method that is written so.

        Args:
            method: any of `FILTERS`, any of `DIVIDERS`, then one of `SELECTORS`, joined by ``|``; see `parse_calls`.
            params: the selector's parameters by name, or a stage's by the stage's name.

        Raises:
            InputError: an unknown name or parameter, or stages in another order.
        """
        calls, params = parse_calls(method), params or {}
        names = [call.name for call in calls]
        for name in names:
            if not isinstance(params.get(name, {}), Mapping):
                raise InputError(
                    f"{name}={params[name]!r}: give its parameters by name, {name}={{'...': ...}}"
                )
        loose = {key: value for key, value in params.items() if key not in names}
        stages: dict[str, Any] = {}
        for call in calls:
            known = SELECTORS if call is calls[-1] else {**FILTERS, **DIVIDERS}
            own = {**params.get(call.name, {}), **(loose if call is calls[-1] else {})}
            stages[call.name] = _build(known, call, own)
        *before, last = names
        selector = stages[last]
        for name in reversed([name for name in before if name in DIVIDERS]):
            selector = stages[name].over(selector)
        filters = {name: stages[name] for name in before if name in FILTERS}
        if [*filters] != before[: len(filters)]:
            raise InputError(
                f"method {method!r}: filters ({', '.join(filters)}) go before what divides the budget"
            )
        return cls(
            " | ".join(names), {name: asdict(stage) for name, stage in stages.items()}, filters, selector
        )

    @property
    def needs_parts(self) -> bool:
        """Whether it looks at the parts of the scores."""
        return not BY_PARTS.isdisjoint(self.params)

    @property
    def needs_trial(self) -> bool:
        """Whether it trains models to choose by."""
        return not BY_TRIAL.isdisjoint(self.params)


def _build(known: Mapping[str, Any], call: Call, params: Mapping[str, Any]) -> Any:
    name = call.name
    if name not in known:
        raise InputError(
            f"{name!r} is no {'selector' if known is SELECTORS else 'filter'}; a method is a selector "
            f"({', '.join(SELECTORS)}), after any filters ({', '.join(FILTERS)}): 'dedup | top_k'"
        )
    allowed = [field.name for field in fields(known[name])]
    if len(call.values) > len(allowed):
        raise InputError(f"{name}: {len(call.values)} parameters; it has {', '.join(allowed) or 'none'}")
    by_place = dict(zip(allowed, call.values, strict=False))
    if twice := next((key for key in by_place if key in call.named), None):
        raise InputError(f"{name}: {twice!r} is there twice, by its place and by its name; once is enough")
    params = {**by_place, **call.named, **params}
    unknown = [key for key in params if key not in allowed]
    if unknown:
        raise InputError(f"{name}: no parameter {unknown[0]!r}; it has {', '.join(allowed) or 'none'}")
    try:
        return known[name](**params)
    except TypeError as error:
        raise InputError(f"{name}: a parameter of the wrong type ({error})") from None
