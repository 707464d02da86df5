"""The run as Kubeflow pipelines: an iteration, a block of them, and tools that compile, check and run them here."""
