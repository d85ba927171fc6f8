"""The docstrings of the installed packages: human-written (signature → first sentence) pairs on any machine.

Files are read with `ast` and never imported, so nothing in them runs.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from backcast.collector import no_cycle_collector
from backcast.data.corpora.base import Corpus
from backcast.data.examples import Examples
from backcast.errors import InputError
from backcast.progress import progress

#: The packages that are read where they are installed, each a source; "stdlib" is Python's standard library.
PACKAGES = (
    "stdlib",
    "PIL",
    "datasets",
    "huggingface_hub",
    "jinja2",
    "joblib",
    "matplotlib",
    "networkx",
    "numpy",
    "pandas",
    "pydantic",
    "rich",
    "scipy",
    "sklearn",
    "sympy",
    "timm",
    "torch",
    "torchvision",
    "transformers",
)

#: Folders of tests and of other people's packages; those whose names start with "_" are left out as well.
SKIPPED = {"test", "tests", "testing", "site-packages", "dist-packages", "idlelib", "externals", "vendor"}

MAX_SIGNATURE, MAX_SENTENCE = 240, 200  # characters

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Pair(NamedTuple):
    """A signature line, the first sentence of its docstring, and the package it is from."""

    prompt: str
    response: str
    source: str


def docstrings_corpus(
    target: str = "scipy",
    seed: int = 0,
    pool_size: int | None = None,
    target_size: int = 200,
    test_size: int = 500,
    warmup_size: int = 500,
    roots: Mapping[str, Path] | None = None,
) -> Corpus:
    """Target and test from one package; pool and warm-up from all the others.

    A sentence of the target package is never in the pool or the warm-up, whatever signature it stands under.

    Args:
        target: the package whose docstrings are wanted.
        seed: of the splits.
        pool_size: rows of the pool, drawn at random; all that are left by default.
        target_size, test_size, warmup_size: rows of the other splits.
        roots: source → folder to read instead of the installed packages.

    Raises:
        InputError: the target is not among the packages, or there are too few pairs for the sizes.
    """
    roots = installed_packages() if roots is None else roots
    if target not in roots:
        raise InputError(f"docstrings: no package {target!r}; choose from {', '.join(roots)}")
    pairs = read_docstrings({target: roots[target], **roots})  # first, so that it keeps what others copied
    wanted = [pair for pair in pairs if pair.source == target]
    held_out = {_key(pair.response) for pair in wanted}
    others = [pair for pair in pairs if pair.source != target and _key(pair.response) not in held_out]

    rng = np.random.default_rng(seed)
    targets, tests = _draw(wanted, (target_size, test_size), rng, target)
    rest = len(others) - warmup_size if pool_size is None else pool_size
    warmup, pool = _draw(others, (warmup_size, rest), rng, "the other packages")
    return Corpus(warmup=warmup, pool=pool, target=targets, test=tests)


def installed_packages() -> dict[str, Path]:
    """Those of `PACKAGES` that are installed, source → folder; none is imported."""
    roots = {}
    for name in PACKAGES:
        if name == "stdlib":
            roots[name] = Path(sysconfig.get_path("stdlib"))
        elif (spec := importlib.util.find_spec(name)) and spec.submodule_search_locations:
            roots[name] = Path(spec.submodule_search_locations[0])
    return roots


def read_docstrings(roots: Mapping[str, Path]) -> list[Pair]:
    """Every distinct pair under the folders, in order of source and sorted path.

    A source keeps the first of the pairs that share a sentence (overloads and boilerplate); a pair that
    another source has word for word is dropped. Files that do not parse are skipped.
    """
    files = [(source, file) for source, root in roots.items() for file in _source_files(root)]
    pairs: list[Pair] = []
    sentences: set[tuple[str, str]] = set()
    contents: set[tuple[str, str]] = set()
    with progress("reading docstrings", len(files)) as advance, no_cycle_collector():
        for source, file in files:
            for prompt, response in _file_pairs(file):
                sentence, content = (source, _key(response)), (prompt, response)
                if sentence not in sentences and content not in contents:
                    pairs.append(Pair(prompt, response, source))
                sentences.add(sentence)
                contents.add(content)
            advance(1)
    return pairs


def _draw(
    pairs: Sequence[Pair], sizes: tuple[int, int], rng: np.random.Generator, name: str
) -> tuple[Examples, Examples]:
    """Two disjoint random sets of pairs, each in the order of ``pairs``."""
    if min(sizes) < 1 or sum(sizes) > len(pairs):
        raise InputError(
            f"docstrings: {name} has {len(pairs)} pairs, too few for {sizes[0]} + {sizes[1]}; ask for fewer"
        )
    order = rng.permutation(len(pairs))
    first, second = order[: sizes[0]], order[sizes[0] : sum(sizes)]
    return _examples(pairs, first), _examples(pairs, second)


def _examples(pairs: Sequence[Pair], chosen: np.ndarray) -> Examples:
    return Examples.from_fields([pairs[i]._asdict() for i in sorted(chosen)])


# ------------------------------------------------------------------ from a file to pairs


def _source_files(root: Path) -> list[Path]:
    """The Python files under ``root``, sorted, without `SKIPPED` and private folders."""

    def kept(folder: str) -> bool:
        return folder not in SKIPPED and not folder.startswith("_")

    return sorted(path for path in root.rglob("*.py") if all(map(kept, path.relative_to(root).parts[:-1])))


def _file_pairs(file: Path) -> Iterator[tuple[str, str]]:
    """(signature, first sentence) of the public definitions in a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            module = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    for definition in _definitions(module.body):
        sentence = first_sentence(ast.get_docstring(definition) or "")
        if sentence:
            yield signature(definition), sentence


def _definitions(body: Sequence[ast.stmt]) -> Iterator[Definition]:
    """Public functions and classes, and their public methods, in the order of the file."""
    for statement in body:
        if isinstance(statement, Definition):
            if not statement.name.startswith("_"):
                yield statement
                if isinstance(statement, ast.ClassDef):
                    yield from _definitions(statement.body)
        elif isinstance(statement, ast.If | ast.Try):
            yield from _definitions(statement.body)
            yield from _definitions(statement.orelse)


def signature(definition: Definition) -> str:
    """The definition's first line: ``def name(args):`` or ``class Name(Base):``."""
    if isinstance(definition, ast.ClassDef):
        head, inside = f"class {definition.name}", ", ".join(map(ast.unparse, definition.bases))
        line = f"{head}({inside}):" if inside else f"{head}:"
    else:
        head = f"{'async ' if isinstance(definition, ast.AsyncFunctionDef) else ''}def {definition.name}"
        line = f"{head}({ast.unparse(definition.args)}):"
    return line if len(line) <= MAX_SIGNATURE else line[: MAX_SIGNATURE - 5] + "...):"


_ROLE = re.compile(r":[\w:.+-]+:`~?([^`<]+?)(?: <[^`]*>)?`")  # :class:`~a.B` and :ref:`text <target>`
_LINK = re.compile(r"\s*<https?://[^>]*>(?:`_+)?")
_BOLD = re.compile(r"\*\*?(\w[^*]*)(?<=\w)\*\*?")
_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bcf)(?<!\betc)(?<!\bal)[.!?](?=\s+[A-Z(`]|$)")
_ASCII = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring as plain text, or "" where there is none worth having.

    It begins with a capital letter, has at least 3 words and at most `MAX_SENTENCE` characters, all ASCII,
    and does not end in a colon. Markup is removed.
    """
    paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())
    plain = _LINK.sub("", _BOLD.sub(r"\1", _ROLE.sub(r"\1", paragraph))).replace("`", "").translate(_ASCII)
    end = _END.search(plain)
    sentence = plain[: end.end()] if end else plain
    prose = re.match(r"[A-Z]\w* ", sentence) and len(sentence.split()) >= 3 and not sentence.endswith(":")
    return sentence if prose and len(sentence) <= MAX_SENTENCE and sentence.isascii() else ""


def _key(sentence: str) -> str:
    """What makes two sentences the same: their letters and digits."""
    return " ".join(re.findall(r"\w+", sentence.casefold()))
