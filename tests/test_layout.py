"""The house is as CONTRIBUTING.md draws it, and imports point one way."""

import ast
import graphlib
import re

from conftest import ROOT

FOLDERS = ("experiments", "benchmarks", "docs")
SCRIPTS = {"capsulenet", "capsulenet_multi_gpu"}


def drawing() -> str:
    return re.search(
        r"```text\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S
    )[1]


def modules() -> dict[str, set[str]]:
    """The modules of ours that each of ours imports, wherever in the file."""
    paths = [*ROOT.glob("*.py")]
    for folder in ("capsnet", *FOLDERS):
        paths += (ROOT / folder).glob("*.py")
    names = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths
    }
    known = {*names.values()}
    found = {}
    for path, name in names.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        found[name] = imported & known
    return found


def test_every_file_of_the_house_is_in_the_drawing():
    lines = [line.split(" ")[0] for line in drawing().splitlines() if line[0] != " "]
    files = {path.name for path in ROOT.glob("*.py")}
    assert {line for line in lines if line.endswith(".py")} == files
    for line in lines:
        assert (ROOT / line).exists()
    inside = re.findall(r"^    (\w+\.py) ", drawing(), re.MULTILINE)
    rooms = {path.name for path in (ROOT / "capsnet").glob("*.py")} - {"__init__.py"}
    assert set(inside) == rooms and len(inside) == len(rooms)
    page = re.findall(r"^    (\w+\.(?:html|css|svg|js)) ", drawing(), re.MULTILINE)
    assert sorted(page) == sorted(path.name for path in (ROOT / "explore").iterdir())


def test_imports_point_one_way():
    imports = modules()
    assert "capsnet.fft_conv" in imports["capsulelayers"]
    for name, others in imports.items():
        room = name.split(".")[0]
        if room == "capsnet":
            allowed = {"capsnet", "utils"}
        elif room in FOLDERS:
            allowed = {other.split(".")[0] for other in imports} - set(FOLDERS) | {room}
        else:
            allowed = {other.split(".")[0] for other in imports} - set(FOLDERS)
            if room not in SCRIPTS:
                allowed -= SCRIPTS
        assert {other.split(".")[0] for other in others} <= allowed, (name, others)
    list(
        graphlib.TopologicalSorter(imports).static_order()
    )  # fails where there is a circle
