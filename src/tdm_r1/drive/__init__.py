"""The driver: block after block to KFP or Argo, until the run is complete, stopped, or cannot go on."""
