"""Suites: any generator on a benchmark's prompts, measured by several scorers, and compared prompt by prompt."""
