"""The capacity planner: what a run will take in seconds, bytes, pods and money, and which limits it would hit."""
