"""Embedded worlds: prompts, renderers and verifiers that need no download."""
