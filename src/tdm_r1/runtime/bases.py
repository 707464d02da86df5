"""The command `model`: what a base is, and what pins it."""

from __future__ import annotations

from rich.table import Table

from tdm_r1 import console
from tdm_r1.config import ModelConfig
from tdm_r1.models.sources import model_files, open_source


def show_base(address: str, revision: str) -> None:
    """Print licence, revision and the size of each part; a hub source or a prefix is fetched first."""
    found = open_source(ModelConfig(source=address, revision=revision))
    table = Table(title=f"{address}: licence {found.licence}", title_justify="left")
    table.add_column("part")
    table.add_column("bytes", justify="right")
    sizes: dict[str, int] = {}
    for file in model_files(found.folder):
        part = file.relative_to(found.folder).parts[0]
        sizes[part] = sizes.get(part, 0) + file.stat().st_size
    for part, size in sizes.items():
        table.add_row(part, f"{size:,}")
    console.OUT.print(table)
    console.OUT.print(f"--set model.source={address} --set model.revision={found.revision}", soft_wrap=True)
