"""The stages: one file, one function, one name. Records in, record out; no path, no I/O, no global state."""
