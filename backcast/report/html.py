"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import statistics
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import ValidationError

from backcast.errors import InputError
from backcast.files import write_atomic
from backcast.report.document import Curves, Pair, Report, shown
from backcast.report.parts_plot import parts_svg
from backcast.report.pictures import heat_map, is_wide, picture
from backcast.report.plots import GLYPHS, NARROW, SERIES, WIDE, curves_svg
from backcast.report.scaling_plots import inverse_svgs
from backcast.report.selection_plots import selection_svgs

HERE = Path(__file__).parent


def render(report: Report, folder: str | Path) -> str:
    """The page; ``folder`` is the run's, where the images are.

    Nothing on it comes from elsewhere, and its content security policy lets nothing in. The same report and images
    give the same bytes.

    Raises:
        InputError: an image is missing or cannot be decoded.
    """
    folder = Path(folder)
    pairs = _pairs(report)

    @cache
    def image(name: str) -> str:
        return picture(folder / name)

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": _signed,
        "duration": _duration,
        "digits": _digits,
        "percent": _percent,
        "count": shown,
    }
    return environment.get_template("template.html").render(
        report=report,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        plots=[Markup(curves_svg(report.curves, frame)) for frame in (WIDE, NARROW)] if report.curves else [],
        table=_table(report.curves) if report.curves else {},
        parts_plots=[Markup(parts_svg(report.modality, frame)) for frame in (WIDE, NARROW)]
        if report.modality
        else [],
        selection_plots=selection_svgs(report.selection) if report.selection else {},
        inverse_plots=inverse_svgs(report.inverse, report.curves.selectors)
        if report.inverse and report.curves
        else {},
        colour=lambda place: f"--s{place % len(SERIES)}",
        glyph=lambda place: GLYPHS[place % len(GLYPHS)],
        image=image,
        heat_map=lambda pair: heat_map(folder / pair.image, pair.image_map),
        is_wide=lambda name: is_wide(folder / name),
        side=lambda part: "helps" if part >= 0 else "harms",
        with_images=any(pair.image for pair in pairs),
        with_parts=any(pair.parts for pair in pairs),
        with_maps=any(pair.image_map for pair in pairs),
        with_tokens=any(pair.tokens for pair in pairs),
        largest_part=max((abs(part) for p in pairs for part in (p.parts or {}).values()), default=0) or 1,
        source_names=_source_names(report),
    )


def write_report(report: Report, folder: str | Path) -> Path:
    """Write ``report.json`` and ``report.html`` into the run's folder; returns the page's path.

    Raises:
        InputError: as `render`; then neither file is written.
    """
    page = render(report, folder)
    write_atomic(Path(folder) / "report.json", report.model_dump_json(indent=2) + "\n")
    write_atomic(Path(folder) / "report.html", page)
    return Path(folder) / "report.html"


def read_report(folder: str | Path) -> Report:
    """Read the ``report.json`` of a run's folder.

    Raises:
        InputError: it is missing, or not what `write_report` writes.
    """
    path = Path(folder) / "report.json"
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError:
        raise InputError(f"{path}: no such file; give the folder of a run that ended in a report") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        fault = f"{place}: {first['msg']}" if place else first["msg"]
        raise InputError(f"{path}: {fault}; mend it there or make the report again") from None


def _table(curves: Curves) -> dict[float, dict[str, str]]:
    """n → selector → mean of its runs, and their spread where there are several."""
    runs: dict[float, dict[str, list[float]]] = {}
    for o in sorted(curves.observed, key=lambda o: o.n):
        runs.setdefault(o.n, {}).setdefault(o.selector, []).append(o.metric)
    return {n: {selector: _spread(metrics) for selector, metrics in row.items()} for n, row in runs.items()}


def _spread(values: list[float]) -> str:
    mean = _digits(statistics.fmean(values), 4)
    return f"{mean} ± {_digits(statistics.stdev(values), 2)}" if len(values) > 1 else mean


def _digits(value: float, count: int) -> str:
    """A number to ``count`` digits, zeros at the end included."""
    return f"{value:#.{count}g}".rstrip(".").replace("-", "−")


def _pairs(report: Report) -> list[Pair]:
    """Every example on the page."""
    near = [pair for n in report.neighbours for pair in (n.query, *(found for _, found in n.found))]
    twins = [pair for _, *both in report.duplicates for pair in both]
    return [*report.best, *report.worst, *near, *twins]


def _source_names(report: Report) -> list[str]:
    """Sources, the most frequent of the first column (the pool) first."""
    columns = list((report.sources or {}).values())
    names = dict.fromkeys(name for column in columns for name in column)
    return sorted(names, key=lambda name: [-column.get(name, 0) for column in columns])


def _signed(value: float) -> str:
    digits = f"{value:+.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:+.2g}"
    return digits.replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
