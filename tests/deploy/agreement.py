"""Holds a rendered overlay, on stdin, against Kubernetes' schemas and against what the other files of this repository say.

Says every disagreement, and then fails.
"""

import json
import pathlib
import re
import subprocess
import sys

import jsonschema
import kubernetes_validate
import yaml
from ruamel.yaml import YAML

# What a process takes at most after its drain (HARD_STOP_TIMEOUT in src/lifecycle.rs).
HARD_STOP_TIMEOUT = 5

# What `web` takes beside its hashing and its uploads, in MiB, how many uploads there are at a time (MAX_STREAMS in
# src/http/buffered.rs), what each takes (two of PART_SIZE in src/resources/storage/mod.rs, and a little), and what each hash takes
# (RESERVED_BLOCKS in src/auth/password.rs). Where HASH_CONCURRENCY is unset, there are as many at a time as cores, and at most so many.
WITHOUT_HASHING, STREAMS, A_STREAM, A_HASH, HASHES = 200, 32, 12, 33, 4


def strictly(required, **properties):
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


# Kubernetes knows no schema of KEDA's. This is the part of it that is used here, as its reference has it
# (https://keda.sh/docs/latest/reference/scaledobject-spec/, .../scalers/prometheus/); what is not in it is refused.
TEXT, COUNT = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
PROMETHEUS = strictly(["serverAddress", "query", "threshold"], serverAddress=TEXT, query=TEXT, threshold={"type": "string", "pattern": "^[0-9.]+$"})
TRIGGER = strictly(["type", "metadata"], type={"const": "prometheus"}, metricType={"enum": ["AverageValue", "Value"]}, metadata=PROMETHEUS)
SCALED_OBJECT = strictly(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "keda.sh/v1alpha1"},
    kind={"const": "ScaledObject"},
    metadata={"type": "object"},
    spec=strictly(
        ["scaleTargetRef", "triggers"],
        scaleTargetRef=strictly(["name"], name=TEXT),
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        triggers={"type": "array", "minItems": 1, "items": TRIGGER},
    ),
)

overlay = sys.argv[1]
problems = []


def must(true, problem):
    if not true:
        problems.append(problem)


def same(what, *values):
    must(all(value == values[0] for value in values), f"{what}: {' ≠ '.join(map(str, values))}")


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|[smhd])", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]


def mebibytes(text):
    number, unit = re.fullmatch(r"(\d+)([MG]i)", text).groups()
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]


def read(path):
    return pathlib.Path(path).read_text()


# Every YAML file of the repository can be read, and names no key twice. In template/ a name is still missing.
for path in subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.yml", "*.yaml", ":!template"], capture_output=True, check=True, text=True).stdout.split():
    if pathlib.Path(path).exists():
        list(YAML(typ="safe", pure=True).load_all(read(path)))

# What the others say. In .env.example a paragraph is a variable: its meaning, who reads it, its default.
variables, readers, required = {}, {}, {}
for paragraph in read(".env.example").split("\n\n")[1:]:
    name, default = re.search(r"^#?([A-Z0-9_]+)=(.*)$", paragraph, re.M).groups()
    variables[name] = default
    who, needed = re.search(r"^# Read by ([^.]*?)(, which need it)?\.$", paragraph, re.M).groups()
    readers[name], required[name] = who, bool(needed)
compose = yaml.safe_load(read("docker-compose.yml"))
procfile = dict(line.split(": ", 1) for line in read("Procfile").splitlines())
metrics = read("docs/metrics.md")

rendered = list(yaml.safe_load_all(sys.stdin))
secret = yaml.safe_load(read("deploy/k8s/secrets.example.yaml"))
for resource in rendered + [secret]:
    name = f"{resource['kind']}/{resource['metadata']['name']}"
    try:
        if resource["kind"] == "ScaledObject":
            jsonschema.validate(resource, SCALED_OBJECT)
        else:
            kubernetes_validate.validate(resource, kubernetes_validate.utils.latest_version(), strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        problems.append(f"{name}: {'.'.join(map(str, getattr(error, 'path', [])))} {error.message}")


def of_kind(kind):
    return {resource["metadata"]["name"]: resource for resource in rendered if resource["kind"] == kind}


[config] = [resource["data"] for resource in of_kind("ConfigMap").values()]
deployments, jobs = of_kind("Deployment"), of_kind("Job")

# The overlay names the namespace once, and everything follows it: two projects in one cluster must not share an object.
[namespace] = of_kind("Namespace")
same("namespace, of kustomization.yaml and of Kubernetes", yaml.safe_load(read(f"{overlay}/kustomization.yaml"))["namespace"], namespace)
for resource in rendered:
    if resource["kind"] != "Namespace":
        same(f"{resource['kind']}/{resource['metadata']['name']}: namespace", namespace, resource["metadata"].get("namespace"))
# deploy/k8s/README.md creates the namespace before everything else by this label.
labelled = [resource["kind"] for resource in rendered if "pod-security.kubernetes.io/enforce" in resource["metadata"].get("labels", {})]
same("kinds with the label pod-security.kubernetes.io/enforce", labelled, ["Namespace"])
# A release is one image for every process type.
images = {container["image"] for workload in [*deployments.values(), *jobs.values()] for container in workload["spec"]["template"]["spec"]["containers"]}
must(len(images) == 1, f"images: {', '.join(sorted(images))}")
must(all(re.fullmatch(r"[^@]+@sha256:[0-9a-f]{64}", image) for image in images), f"an image without a digest: {', '.join(sorted(images))}")

same("process types, of the Procfile and of Kubernetes", sorted(set(procfile) - {"release"}), sorted(deployments))
for name in config:
    must(name.removesuffix("_FILE") in variables, f"ConfigMap: .env.example knows no {name}")
files = {name.removesuffix("_FILE"): path for name, path in config.items() if name.endswith("_FILE") and name not in variables}
same("keys of secrets.example.yaml, and NAME_FILE in the ConfigMap", sorted(secret["stringData"]), sorted(files))
for name in variables:
    if required[name]:
        must(name in config or name in files, f"ConfigMap: {name} is missing, which {readers[name]} need")


def setting(name):
    return config.get(name, variables[name])


for port in ["PORT", "METRICS_PORT"]:
    same(f"{port}, of docker-compose.yml and of the ConfigMap", str(compose["services"]["web"]["environment"][port]), setting(port))

for kind, workloads in [("Deployment", deployments), ("Job", jobs)]:
    for name, workload in workloads.items():
        pod = workload["spec"]["template"]
        spec = pod["spec"]
        [container] = spec["containers"]
        same(f"{name}: command, of the Procfile and of Kubernetes", procfile.get("release" if kind == "Job" else name), " ".join(container["command"]))
        [mount] = container["volumeMounts"]
        [volume] = spec["volumes"]
        same(f"{name}: name of the Secret", secret["metadata"]["name"], volume["secret"]["secretName"])
        for variable, path in files.items():
            same(f"{name}: place of {variable}", f"{mount['mountPath']}/{variable}", path)
        # What the namespace's label `restricted` refuses, and more.
        allowed = {**spec["securityContext"], **container["securityContext"]}
        for key, value in {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }.items():
            same(f"{name}: {key}", value, allowed.get(key))
        same(f"{name}: automountServiceAccountToken", False, spec.get("automountServiceAccountToken"))

for name, deployment in deployments.items():
    pod = deployment["spec"]["template"]
    [container] = pod["spec"]["containers"]
    # A delay is web's alone.
    delay = setting("DRAIN_DELAY") if "DRAIN_DELAY" in variables and name in readers["DRAIN_DELAY"] else "0s"
    grace = int(seconds(delay) + seconds(setting("DRAIN_TIMEOUT")) + HARD_STOP_TIMEOUT)
    same(f"{name}: terminationGracePeriodSeconds, and what its drain takes", pod["spec"]["terminationGracePeriodSeconds"], grace)
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    expected = {"metrics": setting("METRICS_PORT"), **({"http": setting("PORT")} if name == "web" else {})}
    same(f"{name}: ports", ports, expected)
    same(f"{name}: port that Prometheus reads", pod["metadata"]["annotations"]["prometheus.io/port"], setting("METRICS_PORT"))
    for probe, path in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]:
        same(f"{name}: {probe}", container[probe]["httpGet"], {"path": path, "port": "metrics"})
    if name == "web":
        hashing = int(setting("HASH_CONCURRENCY") or HASHES) * A_HASH
        limit = mebibytes(container["resources"]["limits"]["memory"])
        streams = STREAMS * A_STREAM
        enough = limit >= WITHOUT_HASHING + hashing + streams
        must(enough, f"{name}: {limit} MiB is not enough for {hashing} MiB of hashes, {streams} MiB of uploads and {WITHOUT_HASHING} MiB beside")
    same(f"{name}: maxUnavailable", 0, deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"])

environment = compose["services"]["web"]["environment"]
drain = sum(seconds(environment[name].split(":-")[1].rstrip("}")) for name in ["DRAIN_DELAY", "DRAIN_TIMEOUT"]) + HARD_STOP_TIMEOUT
stop = seconds(compose["services"]["web"]["stop_grace_period"])
must(stop >= drain, f"docker-compose.yml: stop_grace_period {stop:g} s is less than a drain's {drain:g} s")

for scaled in of_kind("ScaledObject").values():
    target = scaled["spec"]["scaleTargetRef"]["name"]
    must(target in deployments, f"ScaledObject: scales {target}, which is no Deployment")
    for trigger in scaled["spec"]["triggers"]:
        query = trigger["metadata"]["query"]
        for metric in re.findall(r"(\w+)\{", query):
            must(f"`{metric}`" in metrics, f"ScaledObject: docs/metrics.md knows no {metric}")
        must(f'namespace="{namespace}"' in query, f"ScaledObject: counts jobs of other namespaces than {namespace}: {query}")

# Heroku has the same process types and the same variables, beside what its add-ons set.
heroku = json.loads(read("app.json"))
given = set(heroku["env"]) | {"DATABASE_URL"}
for name in variables:
    must(not required[name] or name in given, f"app.json: {name} is missing, which {readers[name]} need")
for name in set(heroku["env"]) - {"PATH"}:
    must(name in variables, f"app.json: .env.example knows no {name}")
same("process types, of the Procfile and of app.json", sorted(deployments), sorted(heroku["formation"]))

for problem in problems:
    print(f"{overlay}: {problem}", file=sys.stderr)
sys.exit(1 if problems else 0)
