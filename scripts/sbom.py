#!/usr/bin/env python3
"""Prints the SBOM of an image as CycloneDX 1.5: sbom.py CRATE IMAGE PACKAGES

Crates: what the crate's program is linked from, as Cargo resolved it for this machine, with the checksums of Cargo.lock.
Debian packages: the lines of PACKAGES (name, version, source), which deploy/rootfs.sh leaves in an image. The same input
gives the same output: its serial number is a digest of its content, and it has no date.
"""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path


def cargo(root: Path) -> dict:
    host = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    target = re.search(r"^host: (.+)$", host, re.M).group(1)
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    return json.loads(subprocess.run(command, check=True, capture_output=True, cwd=root).stdout)


def linked(metadata: dict, crate: str) -> set[str]:
    """Ids of the packages that the crate needs at run time, itself included; build and test tools are left out."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    todo = [p["id"] for p in metadata["packages"] if p["name"] == crate and p["source"] is None]
    if len(todo) != 1:
        sys.exit(f"sbom.py: there is no crate {crate} in this workspace")
    found = set()
    while todo:
        package = todo.pop()
        if package in found:
            continue
        found.add(package)
        for dependency in nodes[package]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                todo.append(dependency["pkg"])
    return found


def crates(root: Path, crate: str) -> list[dict]:
    metadata = cargo(root)
    locked = tomllib.loads((root / "Cargo.lock").read_text())["package"]
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in locked}
    wanted = linked(metadata, crate)
    components = []
    for package in metadata["packages"]:
        if package["id"] not in wanted:
            continue
        name, version = package["name"], package["version"]
        purl = f"pkg:cargo/{name}@{version}"
        component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        if licence := package.get("license"):
            # Crates of old write `MIT/Apache-2.0`.
            component["licenses"] = [{"expression": re.sub(r"\s*/\s*", " OR ", licence)}]
        if checksum := checksums.get((name, version)):
            component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        components.append(component)
    return components


def debian(lines: str) -> list[dict]:
    components = []
    for line in lines.splitlines():
        name, version, source = line.split()
        purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B')}?upstream={source}"
        components.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return components


def main() -> None:
    crate, image, packages = sys.argv[1:]
    root = Path(__file__).resolve().parent.parent
    components = crates(root, crate) + debian(Path(packages).read_text())
    components.sort(key=lambda c: c["bom-ref"])
    name, _, version = image.partition(":")
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": image, "name": name, "version": version}},
        "components": components,
    }
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()
    document["serialNumber"] = f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}"
    print(json.dumps(document, indent=1))


main()
