"""The page on which people judge images: a server of this machine, and what it shows."""
