"""Write the bill of materials of an image, CycloneDX 1.6 as JSON: `sbom.py IMAGE OUT FOLDER …`.

Runs while the image is built. It lists the Python distributions below the folders and Debian's packages, and knows
neither a clock nor a random number: the same content gives the same bytes.
"""

import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email import message_from_string
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

DPKG_STATUS: Final = Path("/var/lib/dpkg/status")
OS_RELEASE: Final = Path("/etc/os-release")
EPOCH: Final = datetime.fromtimestamp(0, UTC)
"""The time that the document names: that of the image's files, for the same content shall give the same bytes."""


def python_component(found: Distribution) -> Component:
    """One Python distribution, with the license that it declares."""
    name, version = found.metadata["Name"], found.version
    fields = found.metadata.json
    lines = str(fields.get("license_expression") or fields.get("license") or "").strip().splitlines()
    purl = PackageURL("pypi", None, name.lower().replace("_", "-"), version)
    return Component(
        name=name,
        version=version,
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=[LicenseFactory().make_from_string(line) for line in lines[:1]],
    )


def debian_components(status: Path, release: Path) -> Iterator[Component]:
    """The installed packages of dpkg's database; none without one."""
    if not status.is_file():
        return
    fields = dict(line.split("=", 1) for line in release.read_text().splitlines() if "=" in line)
    distro = f"{fields['ID']}-{fields.get('VERSION_ID', '')}".replace('"', "")
    for paragraph in status.read_text(encoding="utf-8").split("\n\n"):
        package = message_from_string(paragraph)
        if not (package.get("Status") or "").endswith(" installed"):
            continue
        name, version = package["Package"], package["Version"]
        qualifiers = {"arch": package["Architecture"], "distro": distro}
        purl = PackageURL("deb", "debian", name, version, qualifiers=qualifiers)
        yield Component(name=name, version=version, purl=purl, bom_ref=purl.to_string())


def bill_of_materials(image: str, components: Iterable[Component]) -> str:
    """The document as indented JSON; its serial number is derived from what it lists."""
    listed = sorted(components, key=lambda component: str(component.purl))
    serial = uuid5(NAMESPACE_URL, "\n".join([image, *(str(component.purl) for component in listed)]))
    subject = Component(name=f"tdm-r1/{image}", type=ComponentType.CONTAINER, bom_ref=image)
    bom = Bom(components=listed, serial_number=serial, metadata=BomMetaData(component=subject, timestamp=EPOCH))
    bom.register_dependency(subject, listed)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def main() -> int:
    """Write the document."""
    image, out, *folders = sys.argv[1:]
    paths = [str(path) for folder in folders for path in Path(folder).glob("python3*/site-packages")]
    python = [python_component(found) for found in distributions(path=paths)]
    Path(out).write_text(
        bill_of_materials(image, [*python, *debian_components(DPKG_STATUS, OS_RELEASE)]), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
