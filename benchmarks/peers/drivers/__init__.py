"""One driver per peer; each runs in that peer's own environment and needs no other."""
