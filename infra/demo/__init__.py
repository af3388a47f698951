"""`make demo`: a dataset replayed into a running stack."""
