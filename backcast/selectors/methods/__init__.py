"""One file a selector; its name is registered here."""

from backcast.selectors.methods.facility_location import FacilityLocation
from backcast.selectors.methods.modality_balance import ModalityBalance
from backcast.selectors.methods.random import Random
from backcast.selectors.methods.round_robin import RoundRobin
from backcast.selectors.methods.top_k import TopK
from backcast.selectors.selection import Divider, Selector

SELECTORS: dict[str, type[Selector]] = {
    "random": Random,
    "top_k": TopK,
    "round_robin": RoundRobin,
    "facility_location": FacilityLocation,
    "modality_balance": ModalityBalance,
}

#: The selectors that, before another, divide the budget for it: ``quota(source) | top_k``.
DIVIDERS: dict[str, type[Divider]] = {}
