"""Backbones behind one protocol, and the adapters that turn one frozen base into many roles."""
