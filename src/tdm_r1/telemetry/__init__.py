"""Numbers for Prometheus: names and units, what is read of a committed record, and where it goes.

Nothing here can change a record, or make a command fail.
"""
