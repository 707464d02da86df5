"""What the stages of a run cost, as the planner ships it.

    python benchmarks/costs.py RUN --source WORDS >src/tdm_r1/assets/plan/shapes_cpu.json

WORDS say which run that was, on what machine, and what else the machine did.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from tdm_r1.artifacts.store import open_store
from tdm_r1.plan.costs import as_json, measured
from tdm_r1.runtime.run_file import read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="RUN")
    parser.add_argument("--source", required=True, metavar="WORDS")
    arguments = parser.parse_args()
    store = open_store(arguments.root)
    costs = measured(store, read_config(store))
    count = costs.source.partition(" ")[0]
    print(json.dumps(as_json(replace(costs, source=f"{count} manifests of {arguments.source}")), indent=1))


if __name__ == "__main__":
    main()
