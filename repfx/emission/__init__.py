"""Maps become modules, with names, weights and the record of where they came from."""

from repfx.emission.assembly import default_dtype, emit_all, graph_module, planned
from repfx.emission.attributes import carry_attributes
from repfx.emission.modules import Target, emit
from repfx.emission.naming import live
from repfx.emission.provenance import below, key_map_of, weights_read, with_weights
from repfx.emission.sharing import holds_one_of, shared_records, shares_weights, stored_twice

__all__ = [
    "Target",
    "below",
    "carry_attributes",
    "default_dtype",
    "emit",
    "emit_all",
    "graph_module",
    "holds_one_of",
    "key_map_of",
    "live",
    "planned",
    "shared_records",
    "shares_weights",
    "stored_twice",
    "weights_read",
    "with_weights",
]
