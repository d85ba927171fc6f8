"""One file a filter, which says which examples a selector may not see; its name is registered here."""

from backcast.selectors.filters.dedup import Dedup
from backcast.selectors.filters.image_needed import ImageNeeded
from backcast.selectors.filters.middle import Window
from backcast.selectors.filters.one_sided_harm import OneSidedHarm
from backcast.selectors.filters.trim import Trim
from backcast.selectors.selection import Filter

FILTERS: dict[str, type[Filter]] = {
    "dedup": Dedup,
    "image_needed": ImageNeeded,
    "one_sided_harm": OneSidedHarm,
    "trim": Trim,
    "middle": Window,
}
