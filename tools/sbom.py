"""Write the bill of materials of the image to dist/: `python tools/sbom.py`, CycloneDX 1.6 in JSON.

It says what requirements.txt installs: versions, licences, package URLs, who requires each package, and the SHA-256
of its published files, of which pip installs one. Nothing in it depends on when or where it was made, so anyone can
make it again and compare. The Debian packages of the base image are not in it.
"""

import os
import sys
import tomllib

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from dependencies import ROOT, Package, packages
from packageurl import PackageURL

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_licences = LicenseFactory()


def sbom() -> str:
    """Return the bill of materials."""
    bom = Bom()
    ours = _component(PROJECT["name"], PROJECT["version"], PROJECT["license"], ComponentType.APPLICATION)
    bom.metadata.component = ours
    contents = packages()
    components = {package.name: _library(package) for package in contents}
    bom.components.update(components.values())
    for name, component in {PROJECT["name"]: ours, **components}.items():
        bom.register_dependency(component, [components[it.name] for it in contents if name in it.required_by])
    # set last: the library fills these with a random number and the time, which would differ on each run
    bom.metadata.timestamp = bom.serial_number = None
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _component(name: str, version: str, licence: str, kind: ComponentType) -> Component:
    purl = PackageURL("pypi", name=name, version=version)
    licences = [_licences.make_from_string(licence)]
    return Component(type=kind, name=name, version=version, purl=purl, bom_ref=str(purl), licenses=licences)


def _library(package: Package) -> Component:
    component = _component(package.name, package.version, package.licence, ComponentType.LIBRARY)
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in package.hashes]
    files = ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(str(component.purl)), hashes=hashes)
    component.external_references.add(files)
    return component


def main() -> None:
    """Write it."""
    path = ROOT / "dist" / f"{PROJECT['name']}-{PROJECT['version']}.cdx.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(sbom())
    sys.stdout.write(f"{os.path.relpath(path)}\n")


if __name__ == "__main__":
    main()
