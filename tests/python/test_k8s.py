"""The manifests in k8s/: rendered, valid by Kubernetes' own schemas, and right where no schema looks. No cluster is needed."""

import pathlib
import shutil
import subprocess
import tomllib

import kubernetes_validate
import pytest

import kustomize
from conftest import PROGRAM

K8S = pathlib.Path(__file__).parents[2] / "k8s"
OVERLAYS = ["single", "cluster", "cluster-tls"]
VERSIONS = ["1.31", "1.34"]
# Made by whoever installs alluvium, not by these manifests (k8s/README.md).
OUTSIDE = {"alluvium": {"admin-token", "cluster-secret"}, "alluvium-tls": {"tls.crt", "tls.key", "ca.crt"},
           "alluvium-rpc-tls": {"tls.crt", "tls.key", "ca.crt"}}
WORKLOADS = {"StatefulSet", "Deployment"}


@pytest.fixture(params=OVERLAYS)
def objects(request):
    return kustomize.render(K8S / "overlays" / request.param)


def of_kind(objects, *kinds):
    return [o for o in objects if o["kind"] in kinds]


def template(workload):
    return workload["spec"]["template"]


def container(workload):
    [only] = template(workload)["spec"]["containers"]
    return only


def pods_of(selector, objects):
    """The workloads whose pods have these labels."""
    return [w for w in of_kind(objects, *WORKLOADS) if selector.items() <= template(w)["metadata"]["labels"].items()]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_small_renderer_agrees_with_kubectl(overlay):
    def by_name(objects):
        text = {}
        for one in objects:
            name = one["metadata"]["name"]
            if one["kind"] == "ConfigMap":
                name = one["metadata"]["name"] = name.rsplit("-", 1)[0]
            for volume in one.get("spec", {}).get("template", {}).get("spec", {}).get("volumes", []):
                if "configMap" in volume:
                    volume["configMap"]["name"] = volume["configMap"]["name"].rsplit("-", 1)[0]
            text[one["kind"], name] = one
        return text

    folder = K8S / "overlays" / overlay
    assert by_name(kustomize.render_here(folder)) == by_name(kustomize.render(folder))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(objects, version):
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)


def test_every_object_lives_in_the_namespace(objects):
    [namespace] = of_kind(objects, "Namespace")
    for one in objects:
        if one is not namespace:
            assert one["metadata"]["namespace"] == namespace["metadata"]["name"], one["metadata"]


def test_selectors_find_their_pods(objects):
    for workload in of_kind(objects, *WORKLOADS):
        assert workload in pods_of(workload["spec"]["selector"]["matchLabels"], objects)
        for constraint in template(workload)["spec"].get("topologySpreadConstraints", []):
            assert pods_of(constraint["labelSelector"]["matchLabels"], objects) == [workload]
    for service in of_kind(objects, "Service"):
        [workload] = pods_of(service["spec"]["selector"], objects)
        names = {port["name"] for port in container(workload)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for budget in of_kind(objects, "PodDisruptionBudget"):
        [workload] = pods_of(budget["spec"]["selector"]["matchLabels"], objects)
        # With one pod it would keep a machine from ever being drained.
        least = [h["spec"]["minReplicas"] for h in of_kind(objects, "HorizontalPodAutoscaler")
                 if h["spec"]["scaleTargetRef"]["name"] == workload["metadata"]["name"]]
        assert workload["spec"].get("replicas", *least) > budget["spec"]["maxUnavailable"]
    for policy in of_kind(objects, "NetworkPolicy"):
        assert len(pods_of(policy["spec"]["podSelector"]["matchLabels"], objects)) == len(of_kind(objects, *WORKLOADS))


def test_names_lead_somewhere(objects):
    services = {s["metadata"]["name"]: s for s in of_kind(objects, "Service")}
    maps = {m["metadata"]["name"]: m["data"] for m in of_kind(objects, "ConfigMap")}
    workloads = {w["metadata"]["name"] for w in of_kind(objects, *WORKLOADS)}
    accounts = {a["metadata"]["name"] for a in of_kind(objects, "ServiceAccount")}
    for workload in of_kind(objects, "StatefulSet"):
        assert workload["spec"]["serviceName"] in services
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        assert scaler["spec"]["scaleTargetRef"]["name"] in workloads
    for workload in of_kind(objects, *WORKLOADS):
        spec, one = template(workload)["spec"], container(workload)
        assert spec["serviceAccountName"] in accounts
        volumes = {v["name"]: v for v in spec["volumes"]}
        claims = {c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])}
        for mount in one["volumeMounts"]:
            assert mount["name"] in volumes.keys() | claims
            if "subPath" in mount:
                assert mount["subPath"] in maps[volumes[mount["name"]]["configMap"]["name"]]
        for volume in volumes.values():
            assert "secret" not in volume or volume["secret"]["secretName"] in OUTSIDE
        for variable in one["env"]:
            wanted = variable.get("valueFrom", {}).get("secretKeyRef")
            assert not wanted or wanted["key"] in OUTSIDE[wanted["name"]]
        names = {port["name"] for port in one["ports"]}
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
            assert one[probe]["httpGet"]["port"] in names


def test_pods_are_locked_down(objects):
    for workload in of_kind(objects, *WORKLOADS):
        spec, one = template(workload)["spec"], container(workload)
        assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
        assert one["securityContext"]["readOnlyRootFilesystem"] and not one["securityContext"]["allowPrivilegeEscalation"]
        assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        resources = one["resources"]
        assert resources["limits"]["memory"] == resources["requests"]["memory"] and "cpu" not in resources["limits"]


def test_settings_are_accepted_and_fit_the_pods(objects, tmp_path):
    [settings] = of_kind(objects, "ConfigMap")
    file = tmp_path / "alluvium.toml"
    file.write_text(settings["data"]["alluvium.toml"])
    secret_files = {f"/etc/alluvium/secrets/{key}" for key in OUTSIDE["alluvium"]}
    secret_files |= {f"/etc/alluvium/{mount}/{key}" for mount in ["tls", "rpc-tls"] for key in OUTSIDE["alluvium-tls"]}
    for workload in of_kind(objects, *WORKLOADS):
        one = container(workload)
        plain = {v["name"]: v["value"] for v in one["env"] if "value" in v}
        environment = {name: value.replace("$(ALLUVIUM_NODE_ID)", "n").replace("$(NAMESPACE)", "ns").replace("$(POD_IP)", "10.0.0.1")
                       for name, value in plain.items()}
        checked = subprocess.run([PROGRAM, "config", "check", "--config", str(file)], env=environment, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        shown = subprocess.run([PROGRAM, "config", "show", "--config", str(file)], env=environment, capture_output=True, text=True)
        effective = tomllib.loads(shown.stdout)
        ports = {port["name"]: port["containerPort"] for port in one["ports"]}
        assert effective["listen"].endswith(f":{ports['http']}")
        if "rpc" in ports:
            assert effective["rpc_listen"].endswith(f":{ports['rpc']}") and effective["rpc_advertise"].endswith(f":{ports['rpc']}")
            host, port = effective["join"].split(":")
            [service] = [s for s in of_kind(objects, "Service") if s["metadata"]["name"] == host]
            assert int(port) in {p["port"] for p in service["spec"]["ports"]} and service["spec"]["publishNotReadyAddresses"]
        mounts = [mount["mountPath"] for mount in one["volumeMounts"]]
        for name, value in effective.items():
            if isinstance(value, str) and value.startswith("/etc/alluvium/"):
                assert value in secret_files and any(value.startswith(mount) for mount in mounts), f"{name} = {value}"
        assert any(effective["data_dir"].startswith(mount) for mount in mounts)
        memory = one["resources"]["limits"]["memory"]
        assert 2 * size(effective["query_memory_bytes"]) <= size(memory), f"queries of {workload['metadata']['name']} may take {memory}"
        for volume in template(workload)["spec"]["volumes"]:
            if "emptyDir" in volume and volume["name"] == "data":
                assert size(effective["query_spill_bytes"]) < size(volume["emptyDir"]["sizeLimit"])


def size(text):
    """Bytes of 1Gi, 512MiB or a number."""
    digits = "".join(c for c in str(text) if c.isdigit())
    unit = str(text)[len(digits):].strip().removesuffix("B").removesuffix("i")
    return int(digits) * 1024 ** ["", "K", "M", "G", "T"].index(unit)


def test_services_speak_what_the_pods_do(objects):
    [settings] = of_kind(objects, "ConfigMap")
    wanted = "https" if "tls_cert" in tomllib.loads(settings["data"]["alluvium.toml"]) else "http"
    for service in of_kind(objects, "Service"):
        for port in service["spec"]["ports"]:
            assert port.get("appProtocol", wanted) == wanted, service["metadata"]["name"]


def test_commands_in_pods_exist(objects):
    for workload in of_kind(objects, *WORKLOADS):
        one = container(workload)
        assert one["args"][0] == "serve"
        command = one.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if command:
            helped = subprocess.run([PROGRAM, *command[1:], "--help"], capture_output=True, text=True)
            assert helped.returncode == 0, helped.stderr
            grace = template(workload)["spec"]["terminationGracePeriodSeconds"]
            assert int(command[command.index("--timeout") + 1].removesuffix("s")) < grace


def test_the_image_runs_as_the_user_of_the_pods():
    dockerfile = (K8S / "Dockerfile").read_text()
    pods = kustomize.render(K8S / "overlays" / "cluster")
    users = {template(w)["spec"]["securityContext"]["runAsUser"] for w in of_kind(pods, *WORKLOADS)}
    [user] = users
    assert f"USER {user}:{user}\n" in dockerfile
