"""The world `shapes`: compositional prompts over flat figures, in GenEval's own metadata form."""
