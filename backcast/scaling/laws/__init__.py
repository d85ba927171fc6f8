"""The laws, one a file; a new one is a file and a line here."""

from backcast.scaling.laws.bnsl import bnsl
from backcast.scaling.laws.exponential import exponential
from backcast.scaling.laws.form import Form, Parameter
from backcast.scaling.laws.hill import hill
from backcast.scaling.laws.m4 import m4
from backcast.scaling.laws.power import power

LAWS: dict[str, Form] = {form.name: form for form in (power, m4, hill, bnsl, exponential)}

__all__ = ["LAWS", "Form", "Parameter"]
