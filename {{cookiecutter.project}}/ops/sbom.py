"""Writes what is in an image, read from its own files, as CycloneDX JSON: `sbom.py IMAGE FILE`.

Every Debian package (dpkg's status), every Python distribution (its metadata, wherever it lies), the interpreter.
"""

import json
import re
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from datetime import datetime
from email.parser import HeaderParser
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

DISTRIBUTION = re.compile(r".*(\.dist-info/METADATA|\.egg-info|\.egg-info/PKG-INFO)")
DPKG = re.compile(r"var/lib/dpkg/status(\.d/[^/]*)?")  # one file; a file each where an image was made without dpkg


def main(image: str, out: Path) -> None:
    (facts,) = json.loads(subprocess.check_output(["docker", "image", "inspect", image]))
    labels = [Property(name=name, value=value) for name, value in (facts["Config"]["Labels"] or {}).items()]
    itself = Component(name=image, type=ComponentType.CONTAINER, version=facts["Id"], properties=labels)
    made = datetime.fromisoformat(facts["Created"][:19] + "+00:00")
    bom = Bom(metadata=BomMetaData(component=itself, timestamp=made), components=found(image))
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, facts["Id"])  # the same image has the same document
    bom.register_dependency(itself, bom.components)
    out.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n", "utf-8")


def found(image: str) -> Iterator[Component]:
    """What the files of `image` say is installed; nothing of it is run."""
    container = subprocess.check_output(["docker", "create", image], text=True).strip()
    try:
        with (
            subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as files,
        ):
            for member in files:
                if file := files.extractfile(member) if member.isfile() else None:
                    if DPKG.fullmatch(member.name):
                        yield from debian(file.read().decode())
                    elif DISTRIBUTION.fullmatch(member.name):
                        yield distribution(file.read().decode())
                    elif member.name.endswith("/pyvenv.cfg"):
                        yield interpreter(file.read().decode())
        if process.returncode:
            raise OSError(f"docker export ended with {process.returncode}")
    finally:
        subprocess.run(["docker", "rm", container], check=True, stdout=subprocess.DEVNULL)


def debian(status: str) -> Iterator[Component]:
    for paragraph in status.strip().split("\n\n"):
        said = HeaderParser().parsestr(paragraph)
        if said.get("Status", "install ok installed").endswith(" installed"):
            name, version, architecture = said["Package"], said["Version"], said["Architecture"]
            yield component(PackageURL("deb", "debian", name, version, {"arch": architecture}))


def distribution(metadata: str) -> Component:
    said = HeaderParser().parsestr(metadata)
    name = re.sub(r"[-_.]+", "-", said["Name"]).lower()
    return component(PackageURL("pypi", name=name, version=said["Version"]), said["License-Expression"])


def interpreter(environment: str) -> Component:
    version = re.search(r"(?m)^version = (.*)$", environment)
    return component(PackageURL("generic", name="python", version=version and version[1]))


def component(what: PackageURL, licence: str | None = None) -> Component:
    licences = [LicenseFactory().make_from_string(licence)] if licence else None
    return Component(name=what.name, version=what.version, purl=what, bom_ref=what.to_string(), licenses=licences)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
