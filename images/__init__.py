"""Building the container images; nothing here is part of one, except `sbom.py` while it is built."""
