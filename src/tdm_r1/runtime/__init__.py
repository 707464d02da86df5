"""From stages to a run: load parents, call, commit; and the loop on one machine."""
