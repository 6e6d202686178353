"""Renders an overlay as `kubectl kustomize` does, as far as k8s/ uses it: resources, namespace, config maps from files, JSON patches.

Anything else in a kustomization.yaml is an error, so that nothing is left out in silence where kubectl is missing.
"""

import copy
import hashlib
import pathlib
import shutil
import subprocess

import yaml

KNOWN = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "patches"}
CLUSTER_WIDE = {"Namespace"}


def render(folder):
    """The objects of an overlay, by kubectl where it is installed."""
    if shutil.which("kubectl"):
        text = subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True).stdout
        return [document for document in yaml.safe_load_all(text) if document]
    return render_here(folder)


def render_here(folder):
    objects, maps = _build(pathlib.Path(folder))
    names = {}
    for name, data in maps.items():
        suffix = hashlib.sha256(repr(sorted(data.items())).encode()).hexdigest()[:10]
        names[name] = f"{name}-{suffix}"
        metadata = {"name": names[name], "namespace": _namespace(folder)}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    for one in objects:
        for volume in one.get("spec", {}).get("template", {}).get("spec", {}).get("volumes", []):
            if "configMap" in volume:
                volume["configMap"]["name"] = names[volume["configMap"]["name"]]
    return objects


def _namespace(folder):
    return yaml.safe_load((pathlib.Path(folder) / "kustomization.yaml").read_text()).get("namespace")


def _build(folder):
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(said) - KNOWN
    assert not unknown, f"{folder}/kustomization.yaml uses {unknown}, which this renderer does not know"
    objects, maps = [], {}
    for resource in said.get("resources", []):
        path = folder / resource
        if path.is_dir():
            more, of_them = _build(path.resolve())
            objects += more
            maps.update(of_them)
        else:
            objects += [document for document in yaml.safe_load_all(path.read_text()) if document]
    for generator in said.get("configMapGenerator", []):
        replaces = generator.get("behavior") == "replace"
        assert replaces == (generator["name"] in maps), f"{folder}: config map {generator['name']} made twice, or replaces none"
        maps[generator["name"]] = {name: (folder / name).read_text() for name in generator["files"]}
    if "namespace" in said:
        for one in objects:
            if one["kind"] not in CLUSTER_WIDE:
                one["metadata"]["namespace"] = said["namespace"]
    for patch in said.get("patches", []):
        target = patch["target"]
        hit = [o for o in objects if o["kind"] == target["kind"] and o["metadata"]["name"] == target["name"]]
        assert len(hit) == 1, f"{folder}: a patch of {target} hits {len(hit)} objects"
        for step in yaml.safe_load((folder / patch["path"]).read_text()):
            _add(hit[0], step)
    return objects, maps


def _add(document, step):
    assert step["op"] == "add", f"this renderer only adds, not {step['op']}"
    *path, last = step["path"].strip("/").split("/")
    at = document
    for name in path:
        at = at[int(name)] if isinstance(at, list) else at[name]
    value = copy.deepcopy(step["value"])
    if isinstance(at, list):
        assert last == "-", "this renderer only appends to lists"
        at.append(value)
    else:
        at[last] = value
