"""Checks of a live system: the invariants, the layouts, the cached maps, and figures about holds and money."""
