#!/usr/bin/env python3
"""Compares what is deployed with code and documentation: check_deploy.py DIRECTORY_OF_RENDERED_OVERLAYS

Called by test-manifests.sh. Settings must be documented, metrics of alerts must exist, every alert needs its section in
docs/OPERATIONS.md, and the manifests must agree with each other on the names of secrets, ports and labels.
"""

import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
# Made by kind-setup.sh, or by whatever fills secrets.example.yaml.
OF_OTHERS = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "POSTGRES_PASSWORD_FILE", "PGDATA", "AWS_REGION"}
FUNCTIONS_METRICS = {"up"}
problems = []


def complain(text):
    problems.append(text)


def documents(path):
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


def documented():
    text = (ROOT / "docs/CONFIGURATION.md").read_text()
    return set(re.findall(r"`([A-Z][A-Z0-9_]+)`", text))


def pods(docs):
    for d in docs:
        if d["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield d, d["spec"]["template"]["spec"]


def check_settings(name, docs):
    known = documented()
    settings = set()
    for d in docs:
        if d["kind"] == "ConfigMap":
            settings |= {k for k in d["data"] if k.isupper()}
    for _, pod in pods(docs):
        for container in pod["containers"]:
            settings |= {e["name"] for e in container.get("env", [])}
    for setting in sorted(settings - OF_OTHERS):
        if setting not in known and setting.removesuffix("_FILE") not in known:
            complain(f"{name}: docs/CONFIGURATION.md does not know {setting}")


def check_secrets(name, docs):
    """Every key of a secret that is used must be one that somebody makes."""
    made = {}
    if name == "kind":
        text = (ROOT / "scripts/kind-setup.sh").read_text()
        for line in re.findall(r"^  secret (.+)$", text, re.M):
            secret, *pairs = re.findall(r"([\w-]+)(?==|\s)", line)
            made[secret] = set(pairs)
    else:
        for d in documents(ROOT / "k8s/overlays/production/secrets.example.yaml"):
            made[d["metadata"]["name"]] = {item["secretKey"] for item in d["spec"]["data"]}
    for d, pod in pods(docs):
        where = f"{name}: {d['kind']} {d['metadata']['name']}"
        mounts = {v["secret"]["secretName"]: v["name"] for v in pod.get("volumes", []) if "secret" in v}
        for container in pod["containers"]:
            for entry in container.get("env", []):
                ref = entry.get("valueFrom", {}).get("secretKeyRef")
                if ref and ref["key"] not in made.get(ref["name"], set()):
                    complain(f"{where}: nobody makes the key {ref['key']} of the secret {ref['name']}")
            paths = {m["mountPath"]: m["name"] for m in container.get("volumeMounts", [])}
            for entry in container.get("env", []):
                if not entry["name"].endswith("_FILE"):
                    continue
                directory, _, key = entry["value"].rpartition("/")
                secret = next((s for s, v in mounts.items() if v == paths.get(directory)), None)
                if key not in made.get(secret, set()):
                    complain(f"{where}: {entry['name']} names {entry['value']}, which is in no secret mounted there")


def check_services(name, docs):
    labels = [(d["metadata"]["namespace"], d["spec"]["template"]["metadata"]["labels"], p) for d, p in pods(docs)]
    for d in docs:
        if d["kind"] != "Service":
            continue
        wanted = d["spec"]["selector"].items()
        behind = [p for space, have, p in labels if space == d["metadata"]["namespace"] and wanted <= have.items()]
        if not behind:
            complain(f"{name}: the service {d['metadata']['name']} selects nothing")
        ports = {p["name"] for pod in behind for c in pod["containers"] for p in c.get("ports", [])}
        for port in d["spec"]["ports"]:
            if port["targetPort"] not in ports:
                complain(f"{name}: the service {d['metadata']['name']} leads to no port {port['targetPort']}")


def check_alerts():
    source = "".join(p.read_text() for p in (ROOT / "crates").rglob("*.rs") if "/tests/" not in str(p))
    real = set(re.findall(r'(?:counter|gauge|histogram)!\(\s*"(\w+)"', source))
    if len(real) < 20:
        complain("the sources are not read as they are written: too few metrics were found")
    runbook = set(re.findall(r"^### (\w+)$", (ROOT / "docs/OPERATIONS.md").read_text(), re.M))
    alerts = set()
    for group in documents(ROOT / "deploy/prometheus/rules.yaml")[0]["groups"]:
        for rule in group["rules"]:
            alerts.add(rule["alert"])
            expression = re.sub(r'"[^"]*"', "", rule["expr"])
            names = set(re.findall(r"\b([a-z]+(?:_[a-z]+)+|up)\b(?=\s*[{\[)<>=])", expression))
            names = {re.sub(r"_(bucket|count|sum)$", "", n) for n in names} - FUNCTIONS_METRICS
            names -= {"histogram_quantile", "min_over_time"}
            for metric in sorted(names - real):
                complain(f"the alert {rule['alert']} uses {metric}, which no program has")
            if not names and "up" not in expression:
                complain(f"no metric was found in the alert {rule['alert']}")
    for alert in sorted(alerts - runbook):
        complain(f"docs/OPERATIONS.md has no section for the alert {alert}")
    for section in sorted({s for s in runbook if s.startswith("Hone")} - alerts):
        complain(f"docs/OPERATIONS.md has a section for {section}, which is no alert")


def main():
    rendered = sorted(Path(sys.argv[1]).glob("*.yaml"))
    overlays = [p for p in rendered if p.stem != "compose"]
    if len(overlays) < 2:
        sys.exit(f"no overlays are rendered in {sys.argv[1]}")
    for path in overlays:
        docs = documents(path)
        check_settings(path.stem, docs)
        check_secrets(path.stem, docs)
        check_services(path.stem, docs)
    check_alerts()
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(overlays)} overlays and the alerts agree with code and documentation")


main()
