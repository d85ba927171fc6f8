"""One file a selector; its name is registered here."""

from backcast.selectors.methods.cluster import Cluster
from backcast.selectors.methods.facility_location import FacilityLocation
from backcast.selectors.methods.graph_cut import GraphCut
from backcast.selectors.methods.greedy_law import GreedyLaw
from backcast.selectors.methods.herding import Herding
from backcast.selectors.methods.importance import Importance
from backcast.selectors.methods.k_center import KCenter
from backcast.selectors.methods.less import Less
from backcast.selectors.methods.log_det import LogDet
from backcast.selectors.methods.middle import Middle
from backcast.selectors.methods.modality_balance import ModalityBalance
from backcast.selectors.methods.policy import Policy
from backcast.selectors.methods.quota import Quota
from backcast.selectors.methods.random import Random
from backcast.selectors.methods.round_robin import RoundRobin
from backcast.selectors.methods.top_k import TopK
from backcast.selectors.methods.vote import Vote
from backcast.selectors.selection import Divider, Selector

SELECTORS: dict[str, type[Selector]] = {
    "random": Random,
    "top_k": TopK,
    "round_robin": RoundRobin,
    "facility_location": FacilityLocation,
    "modality_balance": ModalityBalance,
    "greedy_law": GreedyLaw,
    "importance": Importance,
    "less": Less,
    "middle": Middle,
    "policy": Policy,
    "quota": Quota,
    "vote": Vote,
    "cluster": Cluster,
    "graph_cut": GraphCut,
    "herding": Herding,
    "k_center": KCenter,
    "log_det": LogDet,
}

#: The selectors that, before another, divide the budget for it: ``quota(source) | top_k``.
DIVIDERS: dict[str, type[Divider]] = {"quota": Quota}
