"""The rules of the code base, read from the source: layers, sizes, annotations, dangerous calls."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nl3dmm"

# Low to high. A module imports from lower layers and from its own group; groups of one layer do not know each other.
# The longest matching name decides: data.crop, data.images and data.landmark_files only read photos and are low.
LAYERS = (
    ("errors", "types"),
    ("outputs", "config", "cli", "machine", "page"),
    ("geometry",),
    ("render",),
    ("assets",),
    ("nn", "losses", "synthetic", "data.crop", "data.images", "data.landmark_files"),
    ("data",),
    ("model",),
    ("systems",),
    ("settings",),
    ("checkpoint_io", "export", "report", "run_config", "stickers"),
    ("checkpoint",),
    ("release",),
    ("fitting", "panels", "editing"),
    ("views",),
    ("evaluation", "reconstruction"),
    ("fitting.photos",),
    ("fitting.job",),
    ("training", "figures", "sweeps"),
    ("train", "fit", "edit", "evaluate", "figure", "sweep", "world", "prep", "landmarks", "doctor", "export_networks"),
)
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 300, 40, 8
GIVEN_SIGNATURES = {"texture": 9}  # nvdiffrast's eight parameters, and a mask
SOURCES = sorted(PACKAGE.rglob("*.py"))
each_module = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    """Dotted name below ``nl3dmm``; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imported_modules(path: Path) -> set[str]:
    """Modules of nl3dmm that this one names, also inside functions and through ``import_module``."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix("nl3dmm.") in MODULES else node.module for name in names}
        elif isinstance(node, ast.Call) and called_name(node) == "import_module":
            found |= {part.value for part in node.args if isinstance(part, ast.Constant)}
    own = {name.removeprefix("nl3dmm").removeprefix(".") for name in found if name.split(".")[0] == "nl3dmm"}
    return own - {module_name(path)}


def layer_of(module: str) -> tuple[int, str]:
    """Layer number and group of a module."""
    matches = [
        (len(group), number, group)
        for number, groups in enumerate(LAYERS)
        for group in groups
        if module == group or module.startswith(f"{group}.")
    ]
    assert matches, f"{module} is in no layer: place it in LAYERS"
    return max(matches)[1:]


def called_name(node: ast.Call) -> str:
    """``a.b.c`` of a call ``a.b.c(...)``; ``?.c`` where it is a method of an expression."""
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join(reversed([*parts, function.id if isinstance(function, ast.Name) else "?"]))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield called_name(node), node


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def public_functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods of public classes, with their qualified names; not those inside functions.

    Modules and folders whose name starts with an underscore are private, the compiled kernels among them.
    """
    if any(part.startswith("_") and part != "__init__.py" for part in path.relative_to(PACKAGE).parts):
        return
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and (not item.name.startswith("_") or item.name == "__init__"):
                    yield f"{node.name}.{item.name}", item


def body_length(node: ast.FunctionDef) -> int:
    """Lines of a function's body without its docstring."""
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return node.end_lineno - (first.end_lineno if is_docstring else first.lineno - 1)


@each_module
def test_imports_only_go_down(path):
    name = module_name(path)
    if name == "":
        return  # the package re-exports lazily what it makes public
    number, group = layer_of(name)
    for other in imported_modules(path):
        assert other, f"{name} imports the package itself"
        below, other_group = layer_of(other)
        assert below < number or other_group == group, f"{name} imports {other}"


def test_there_are_no_import_cycles():
    edges = {name: imported_modules(path) for name, path in MODULES.items() if name}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for other in sorted(edges.get(name, ())):
                visit(other, (*way, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_every_layer_exists():
    for group in (group for groups in LAYERS for group in groups):
        assert group in MODULES, f"{group} is no module any more: take it out of LAYERS"


@pytest.mark.parametrize("package", ["geometry", "render", "losses"])
def test_tensor_packages_know_no_templates(package):
    for name, path in MODULES.items():
        if name.split(".")[0] == package:
            assert "Template" not in path.read_text(encoding="utf-8"), name


@each_module
def test_every_module_has_a_docstring(path):
    assert ast.get_docstring(tree(path)), f"{path.name} has no docstring"


@each_module
def test_annotations_are_real_objects(path):
    futures = [
        node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    assert not futures, "postponed annotations cannot be checked by jaxtyping"


@each_module
def test_public_functions_are_annotated(path):
    missing = []
    for name, node in public_functions(path):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        arguments = [argument for argument in arguments if argument.arg not in ("self", "cls")]
        missing += [f"{name}({argument.arg})" for argument in arguments if argument.annotation is None]
        if node.returns is None and not name.endswith("__init__"):
            missing.append(f"{name} -> ?")
    assert not missing


@each_module
def test_there_are_no_asserts(path):
    assert not [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Assert)]


@each_module
def test_there_are_no_dangerous_calls(path):
    forbidden = {"eval", "exec", "__import__", "compile", "os.system"}
    assert not {name for name, _ in calls(path)} & forbidden
    assert not {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"} & set(external_imports(path))


def external_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@each_module
def test_files_are_loaded_safely(path):
    for name, node in calls(path):
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        if name == "torch.load":
            assert "weights_only" in options, f"line {node.lineno}"
            assert getattr(options["weights_only"], "value", None) is True, f"line {node.lineno}"
        assert "allow_pickle" not in options or options["allow_pickle"].value is False, f"line {node.lineno}"
        assert name not in ("yaml.load", "yaml.unsafe_load", "torch.jit.load"), f"line {node.lineno}"


@each_module
def test_sizes(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE, f"{lines} lines"
    for node in functions(path):
        assert body_length(node) <= MAX_FUNCTION, f"{node.name}: {body_length(node)} lines"
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        is_kernel = any("kernel" in ast.unparse(decorator) for decorator in node.decorator_list)
        assert count <= GIVEN_SIGNATURES.get(node.name, MAX_PARAMETERS) or is_kernel, f"{node.name}: {count} parameters"


@pytest.mark.parametrize("package", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_packages_only_re_export(package):
    for node in tree(PACKAGE / package / "__init__.py").body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_public_list = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        assert is_docstring or is_public_list or isinstance(node, (ast.Import, ast.ImportFrom))


def test_each_convention_names_a_test_that_exists():
    lines = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| what")]
    assert len(rows) >= 15
    for row in rows:
        test = row.split("`")[-2]
        assert test.startswith("tests/"), row
        assert (ROOT / test).is_file(), row


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, nl3dmm; sys.exit(bool({'torch', 'numba', 'lightning', 'cv2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_package_names_what_it_makes_public():
    import nl3dmm

    for name in nl3dmm.__all__:
        assert getattr(nl3dmm, name) is not None
    assert set(nl3dmm.__all__) <= set(dir(nl3dmm))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        nl3dmm.nothing  # noqa: B018


def test_no_file_of_the_package_names_a_folder_of_some_machine():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in ("/work/", "/home/", "/Users/", "/tmp/") if word in text], path
