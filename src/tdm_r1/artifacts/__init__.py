"""Records, and how they are stored: `records` is the contract, `repository` commits and loads."""
