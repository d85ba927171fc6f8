"""Real data sets that install with the package or lie in any Python installation."""

from backcast.data.corpora.base import Corpus
from backcast.data.corpora.digits import DigitsCorpus, DigitsSizes, DigitsTruth, digits_corpus
from backcast.data.corpora.docstrings import docstrings_corpus

__all__ = ["Corpus", "DigitsCorpus", "DigitsSizes", "DigitsTruth", "digits_corpus", "docstrings_corpus"]
