"""Docstrings as pairs, from a tree of fake packages and from the standard library."""

import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from backcast.data import read_examples
from backcast.data.corpora.docstrings import (
    MAX_SIGNATURE,
    Pair,
    docstrings_corpus,
    first_sentence,
    installed_packages,
    read_docstrings,
)
from backcast.errors import InputError

MODULE = '''
raise SystemExit("a file that is read must not be run")

def area(width, height=1.0, *, unit: str = "m"):
    """Return the area of a
    rectangle. Both sides are lengths.

    More.
    """
    def inner():
        """Return something of the inside."""

async def fetch(url):
    """Fetch a page from the network"""

class Shape(Base, metaclass=Meta):
    r"""A figure in the plane."""

    @property
    def sides(self):
        """Number of the sides."""

    def _hidden(self):
        """Return what is hidden here."""

if True:
    def guarded(x):
        """Return the guarded value."""

def bare(x):
    pass

def short():
    """Two words."""
'''


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def functions(package: str, n: int) -> str:
    return "".join(f'def {package}{i}(x):\n    """Return number {i} of {package}."""\n' for i in range(n))


def test_public_definitions_become_signature_and_sentence(tmp_path):
    root = tree(tmp_path / "shapes", {"plane.py": MODULE})
    assert read_docstrings({"shapes": root}) == [
        Pair("def area(width, height=1.0, *, unit: str='m'):", "Return the area of a rectangle.", "shapes"),
        Pair("async def fetch(url):", "Fetch a page from the network", "shapes"),
        Pair("class Shape(Base):", "A figure in the plane.", "shapes"),
        Pair("def sides(self):", "Number of the sides.", "shapes"),
        Pair("def guarded(x):", "Return the guarded value.", "shapes"),
    ]


def test_tests_private_folders_and_broken_files_are_left_out(tmp_path):
    root = tree(
        tmp_path / "p",
        {
            "b.py": functions("b", 1),
            "a/_private_file.py": functions("a", 1),
            "_vendor/c.py": functions("c", 1),
            "a/tests/d.py": functions("d", 1),
            "site-packages/e.py": functions("e", 1),
            "broken.py": "def f(:\n",
            "null.py": "x = 1\0",
        },
    )
    assert [pair.prompt for pair in read_docstrings({"p": root})] == ["def a0(x):", "def b0(x):"]


def test_boilerplate_is_kept_once_per_source(tmp_path):
    same = 'def fit(x):\n    """Fit the model."""\ndef fit(x, y):\n    """Fit  the ``model``."""\n'
    other = 'def train(x):\n    """Fit the model."""\n'
    roots = {
        "a": tree(tmp_path / "a", {"m.py": same, "n.py": same}),
        "b": tree(tmp_path / "b", {"m.py": same}),
        "c": tree(tmp_path / "c", {"m.py": other}),
    }
    assert read_docstrings(roots) == [
        Pair("def fit(x):", "Fit the model.", "a"),
        Pair("def train(x):", "Fit the model.", "c"),
    ]


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return e.g. the sum. Next.", "Return e.g. the sum."),
        ("Open a file (i.e. a path). It is", "Open a file (i.e. a path)."),
        ("Round to 2.5 places. More", "Round to 2.5 places."),
        ("See :class:`~a.b.C` and :ref:`that text <target>`.", "See a.b.C and that text."),
        ("Return ``x ** 2`` for **all** of *them*.", "Return x ** 2 for all of them."),
        ("The net of `Some paper <https://a.org/b>`_ by them.", "The net of Some paper by them."),
        ("Return “it” – now.", 'Return "it" - now.'),
        ("Is this it? Yes", "Is this it?"),
        ("One of these words:", ""),
        ("returns in lower case letters.", ""),
        (">>> a doctest goes here", ""),
        ("Two words.", ""),
        ("Return the größe of it.", ""),
        ("Return " + "very " * 50 + "much.", ""),
        ("", ""),
    ],
)
def test_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


def test_long_signatures_are_cut(tmp_path):
    arguments = ", ".join(f"argument_{i}" for i in range(100))
    root = tree(tmp_path / "p", {"a.py": f'def f({arguments}):\n    """Return nothing at all."""\n'})
    (pair,) = read_docstrings({"p": root})
    assert len(pair.prompt) == MAX_SIGNATURE
    assert pair.prompt.endswith("...):")


def test_target_sentences_are_nowhere_else(tmp_path):
    roots = {
        "near": tree(tmp_path / "near", {"m.py": functions("near", 40)}),
        "wanted": tree(tmp_path / "wanted", {"m.py": functions("wanted", 30) + functions("near", 5)}),
        "far": tree(tmp_path / "far", {"m.py": functions("far", 20)}),
    }
    sizes = {"target_size": 10, "test_size": 20, "warmup_size": 15}
    corpus = docstrings_corpus("wanted", seed=1, roots=roots, **sizes)
    assert [len(s) for s in (corpus.warmup, corpus.pool, corpus.target, corpus.test)] == [15, 40, 10, 20]
    assert Counter(e.source for e in [*corpus.warmup, *corpus.pool]) == {"near": 35, "far": 20}
    assert {e.source for e in [*corpus.target, *corpus.test]} == {"wanted"}
    held_out = {e.fields["response"] for e in [*corpus.target, *corpus.test]}
    assert held_out.isdisjoint(e.fields["response"] for e in [*corpus.warmup, *corpus.pool])
    ids = [e.id for s in (corpus.warmup, corpus.pool, corpus.target, corpus.test) for e in s]
    assert len(set(ids)) == len(ids)

    again = docstrings_corpus("wanted", seed=1, roots=roots, **sizes)
    other = docstrings_corpus("wanted", seed=2, roots=roots, **sizes)
    assert again.pool.index.ids == corpus.pool.index.ids != other.pool.index.ids
    part = docstrings_corpus("wanted", seed=1, pool_size=7, roots=roots, **sizes)
    assert len(part.pool) == 7

    paths = corpus.write(tmp_path / "out")
    again.write(tmp_path / "again")
    for name, path in paths.items():
        read = read_examples(path)
        assert [(e.id, e.source) for e in read] == [(e.id, e.source) for e in getattr(corpus, name)]
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_wrong_targets_and_sizes(tmp_path):
    roots = {name: tree(tmp_path / name, {"m.py": functions(name, 5)}) for name in ("a", "b")}
    with pytest.raises(InputError, match="no package 'c'; choose from a, b"):
        docstrings_corpus("c", roots=roots)
    with pytest.raises(InputError, match=r"a has 5 pairs, too few for 3 \+ 3"):
        docstrings_corpus("a", roots=roots, target_size=3, test_size=3)
    with pytest.raises(InputError, match="the other packages has 5 pairs"):
        docstrings_corpus("a", roots=roots, target_size=1, test_size=1, warmup_size=5)


def test_installed_packages_are_found_without_importing_them():
    roots = installed_packages()
    assert {"stdlib", "numpy", "torch", "sklearn"} <= set(roots)
    assert all(root.is_dir() for root in roots.values())
    code = """
import sys
from backcast.data.corpora.docstrings import installed_packages
installed_packages()
print({"torch", "sklearn", "transformers", "sympy"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_known_docstring_of_the_standard_library():
    pairs = read_docstrings({"json": Path(sysconfig.get_path("stdlib")) / "json"})
    assert any(
        p.prompt.startswith("def load(fp, *, cls=None") and "Deserialize fp" in p.response for p in pairs
    )
