"""Checks that the editor's container fits docker-compose.yml, which holds its services and their versions."""

import json
import pathlib
import re
import sys

import yaml

folder = pathlib.Path(".devcontainer")
container = json.loads((folder / "devcontainer.json").read_text())
own = yaml.safe_load((folder / "compose.yml").read_text())["services"]
compose = yaml.safe_load(pathlib.Path("docker-compose.yml").read_text())["services"]
editor = own[container["service"]]
toolchain = re.search(r'channel = "(\d+\.\d+)', pathlib.Path("rust-toolchain.toml").read_text())[1]

problems = []
if container["dockerComposeFile"] != ["../docker-compose.yml", "compose.yml"]:
    problems.append("devcontainer.json must name ../docker-compose.yml, then compose.yml")
if list(own) != [container["service"]]:
    problems.append("compose.yml may add no service except the editor's, because docker-compose.yml holds the services")
for service in {*container["runServices"], *editor["depends_on"]} - compose.keys():
    problems.append(f"docker-compose.yml has no service {service}")
for name, value in editor["environment"].items():
    if compose["web"]["environment"].get(name) != value:
        problems.append(f"{name} is not the same as in docker-compose.yml")
if not editor["image"].startswith(f"rust:{toolchain}-"):
    problems.append(f"the image {editor['image']} is not that of rust-toolchain.toml, {toolchain}")
for problem in problems:
    print(f".devcontainer: {problem}", file=sys.stderr)
sys.exit(bool(problems))
