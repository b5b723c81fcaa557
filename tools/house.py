"""The rooms of a checkout: their lines, their largest files, their names, what imports what. Nothing is imported.

    python tools/house.py [--root PATH] [--json]

A room is a package right below src/dualrate; modules that lie there themselves are `(root)`, but for `__init__` and
`__main__`, each a room of its own like the modules beside the package. Imports count once for each pair of files,
wherever in a file they stand. Rooms in a ring import one another, directly or through others: in any order some of
their imports point up.

Rooms are of five groups: the engine, what carries it, the wings (each a subject whole), the services (what runs it on
many processes, and for many people), and the front. Lines of code are those without docstrings, comments and blanks. A
vague name is one of VAGUE, which say nothing of what they hold. To learn a wing a newcomer reads its modules that have
code, and those of the front that import it and no other wing.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import keyword
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

PACKAGE = "dualrate"
BESIDE = ("studies", "tools", "benchmarks", "tests")
LARGEST = 10
WINGS = ("forecasts", "pipelines", "texts")  # none imports another, and nothing but the front imports them
ENGINE = (
    "diffusion",
    "sampling",
    "denoisers",
    "networks",
    "training",
    "methods",
    "experiment",
)
CARRIERS = ("system", "config", "codecs", "data", "metrics", "report", "recipes", "runs", "drawing")
SERVICES = ("launchers", "serving")
GROUPS = {"engine": ENGINE, "carriers": CARRIERS, "services": SERVICES}
VAGUE = frozenset(
    ["found", "made", "own", "one", "given", "kept", "held", "known", "asked", "told", "others", "there", "odd"]
)
ROLES = {  # public names that several modules may have: each says with its module's name what it is
    "main": "runs the module",
    "load": "reads what the module is of: a checkpoint, a network of features, a run",
    **dict.fromkeys(("call", "encode", "negative", "prompt"), "a part of the network class that the module describes"),
    **dict.fromkeys(("network", "dual", "distilled", "first", "base", "both"), "a recipe of the module's data"),
    "Forecast": "the command is named after what it makes, as all are",
}
EVASIVE = ("Of", "Those", "What", "That")  # first words of docstrings that name neither an action nor a value


def modules(src: Path) -> dict[str, Path]:
    """Files by name: src/dualrate/data/decode.py is dualrate.data.decode; a package's `__init__` is the last part."""
    return {".".join(path.relative_to(src).with_suffix("").parts): path for path in sorted(src.rglob("*.py"))}


def room(module: str) -> str:
    """dualrate.data.decode is of data, dualrate.decode of (root), dualrate.__init__ of __init__, other.py of other."""
    first, *rest = module.split(".")
    if first != PACKAGE or not rest:
        return first if first != PACKAGE else "__init__"
    return rest[0] if rest[1:] or rest[0].startswith("__") else "(root)"


def imports(source: str | ast.Module, module: str, module_names: Iterable[str]) -> set[str]:
    """Full names of the modules that `module` imports anywhere in its code, as far as they can be read off.

    source: its text, or the tree of it.

    A name in one of `module_names` counts as that module, `__init__` for a package. Also seen are importlib's
    `import_module` and `__import__` of a constant name, and modules reached as attributes.
    """
    module_names, targets = set(module_names), set()
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source) if isinstance(source, str) else source):
        if isinstance(node, ast.Import):
            targets.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets.update(
                f"{base}.{alias.name}" if _module_of(f"{base}.{alias.name}", module_names) else base
                for alias in node.names
            )
        elif isinstance(node, ast.Call) and _last(node.func) in ("import_module", "__import__"):
            targets.update(_named(node, package))
        elif isinstance(node, ast.Attribute) and _first(node) == PACKAGE:
            targets.update(_inner(ast.unparse(node).split("."), module_names))
    return {_module_of(name, module_names) or name for name in targets}


def _last(name: ast.expr) -> str | None:
    """c of a.b.c."""
    return name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else None


def _first(name: ast.expr) -> str | None:
    """a of a.b.c."""
    while isinstance(name, ast.Attribute):
        name = name.value
    return name.id if isinstance(name, ast.Name) else None


def _module_of(name: str, module_names: set[str]) -> str | None:
    """The module of this name, if there is one; `__init__` for a package."""
    return name if name in module_names else f"{name}.__init__" if f"{name}.__init__" in module_names else None


def _named(call: ast.Call, package: list[str]) -> list[str]:
    """Modules that a call imports, if its first argument is a constant; dots in front lead from `package`."""
    first = call.args[0] if call.args else next((word.value for word in call.keywords if word.arg == "name"), None)
    if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
        return []
    name = first.value.lstrip(".")
    level = len(first.value) - len(name)
    return [".".join([*package[: len(package) - level + 1], name]) if level else name]


def _inner(parts: list[str], module_names: set[str]) -> list[str]:
    """The module that an attribute of the package lies in: the longest beginning that is one; or none."""
    beginnings = (_module_of(".".join(parts[:end]), module_names) for end in range(len(parts), 1, -1))
    return [name for name in beginnings if name][:1]


def lines(paths: Iterable[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def code(source: str) -> tuple[int, int]:
    """Lines of code, without docstrings, comments and blanks; and those of them that import."""
    tree, skipped = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            skipped.update(range(node.lineno, (node.end_lineno or 0) + 1))
    marks = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code_lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in marks
        for line in range(token.start[0], token.end[0] + 1)
    }
    imported = {
        line
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    return len(code_lines - skipped), len(imported)


def group(room: str) -> str:
    """The group of a room."""
    if room in WINGS:
        return room
    return next((name for name, rooms in GROUPS.items() if room in rooms), "front")


def names(source: str) -> Counter[str]:
    """Counts of the identifiers in it."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return Counter(
        token.string for token in tokens if token.type == tokenize.NAME and not keyword.iskeyword(token.string)
    )


def definitions(tree: ast.Module) -> set[str]:
    """The public classes and functions of a module."""
    parts = (node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)))
    return {part.name for part in parts if not part.name.startswith("_")}


def first_words(tree: ast.Module) -> Counter[str]:
    """The first words of its docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
    return Counter(text.split()[0].strip(".,:;") for text in texts if text)


def refusals(tree: ast.Module) -> int:
    """Lines of its `raise` statements."""
    raised = (node for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in raised)


def dialect(sources: Iterable[str]) -> dict[str, object]:
    """Counts of words: vague names in 1,000, docstrings by a first word that evades, public names that are defined in
    several modules and are no role, lines of refusals.
    """
    identifiers: Counter[str] = Counter()
    openings: Counter[str] = Counter()
    places: Counter[str] = Counter()
    raised = 0
    for source in sources:
        tree = ast.parse(source)
        identifiers += names(source)
        openings += first_words(tree)
        places.update(definitions(tree))
        raised += refusals(tree)
    vague = {
        name: identifiers[name]
        for name in sorted(VAGUE, key=lambda name: (-identifiers[name], name))
        if identifiers[name]
    }
    return {
        "vague_in_1000": round(1000 * sum(vague.values()) / max(1, sum(identifiers.values())), 1),
        "vague": vague,
        "evasive_docstrings": {word: openings[word] for word in EVASIVE if openings[word]},
        "defined_twice": {name: count for name, count in sorted(places.items()) if count > 1 and name not in ROLES},
        "refusal_lines": raised,
    }


def reading(module_lines: Mapping[str, int], targets: Mapping[str, Iterable[str]]) -> dict[str, dict[str, list[str]]]:
    """The modules that a newcomer to each wing reads, by room.

    module_lines: lines of code of each module; targets: what each imports.
    """
    rooms: dict[str, dict[str, list[str]]] = {}
    for name, count in module_lines.items():
        wings = {room(target) for target in targets[name]} & set(WINGS)
        place = room(name)
        wing = place if place in WINGS else wings.pop() if group(place) == "front" and len(wings) == 1 else None
        if count and wing and place != "__init__":
            rooms.setdefault(wing, {}).setdefault(place, []).append(name)
    return {wing: rooms[wing] for wing in WINGS if wing in rooms}


def rings(between: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of rooms of which each is reached from each."""

    def reached(start: str) -> set[str]:
        seen, open_ = set(), [start]
        while open_:
            new = set(between.get(open_.pop(), ())) - seen
            seen |= new
            open_ += new
        return seen

    far = {name: reached(name) for name in between}
    groups = {tuple(sorted(peer for peer in far[name] if name in far.get(peer, ()))) for name in far}
    return sorted(list(group) for group in groups if len(group) > 1)


def survey(root: Path) -> dict[str, object]:
    """Counts of a checkout."""
    files = modules(root / "src")
    rooms: dict[str, list[Path]] = {}
    for name, path in files.items():
        rooms.setdefault(room(name), []).append(path)
    beside = {name: sorted((root / name).rglob("*.py")) for name in BESIDE}
    pairs: Counter[tuple[str, str]] = Counter()
    importers: Counter[str] = Counter()
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    targets = {name: imports(text, name, files) for name, text in texts.items()}
    for name in files:
        for target in targets[name]:
            importers[target] += target != name
            if target in files and room(target) != room(name):
                pairs[room(name), room(target)] += 1
    between = {name: {to: pairs[name, to] for to in sorted(rooms) if pairs[name, to]} for name in sorted(rooms)}
    sizes = {str(path.relative_to(root)): lines([path]) for path in chain(files.values(), *beside.values())}
    packages = [path for path in files.values() if path.name == "__init__.py"]
    counts = [code(text) for text in texts.values()]
    module_lines = {name: count for name, (count, _) in zip(texts, counts, strict=True)}
    groups: Counter[str] = Counter()
    for name, count in module_lines.items():
        groups[group(room(name))] += count
    arrows = sum(count for (start, end), count in pairs.items() if end in WINGS and group(start) != "front")
    return {
        "src": lines(files.values()),
        "code": sum(count for count, _ in counts),
        "import_lines": sum(count for _, count in counts),
        "one_importer": sum(importers[name] == 1 for name in files),
        "rooms": {name: {"files": len(paths), "lines": lines(paths)} for name, paths in sorted(rooms.items())},
        "beside": {name: {"files": len(paths), "lines": lines(paths)} for name, paths in beside.items() if paths},
        "tests": {path.name: lines(path.rglob("*.py")) for path in sorted((root / "tests").glob("*")) if path.is_dir()},
        "largest": dict(sorted(sizes.items(), key=lambda item: -item[1])[:LARGEST]),
        "packages": len(packages),
        "groups": dict(groups),
        "arrows_into_wings": arrows,
        "newcomer_reads": reading(module_lines, targets),
        **dialect(texts.values()),
        "imports": between,
        "rings": rings(between),
    }


def page(counts: dict) -> str:
    """The survey as text."""
    text = [f"src: {counts['src']} lines in {sum(part['files'] for part in counts['rooms'].values())} files"]
    text += [
        f"{counts['code']} lines of code, {counts['import_lines']} of them imports; no docstrings, comments, blanks"
    ]
    text += [f"{counts['one_importer']} modules that one other imports"]
    text += [f"  {name:<14}{part['lines']:>7} lines{part['files']:>5} files" for name, part in counts["rooms"].items()]
    text += [f"{name}: {part['lines']} lines in {part['files']} files" for name, part in counts["beside"].items()]
    text += ["largest files:", *(f"  {count:>5} {name}" for name, count in counts["largest"].items())]
    text += ["lines of code by group:", *(f"  {name:<14}{count:>7}" for name, count in counts["groups"].items())]
    text += [f"{counts['arrows_into_wings']} imports of a wing by engine, carriers or another wing"]
    for wing, by_room in counts["newcomer_reads"].items():
        files = {place: len(names) for place, names in by_room.items()}
        text += [f"a newcomer to {wing} reads {sum(files.values())} files in {len(files)} rooms: {_counted(files)}"]
    text += [
        f"{counts['refusal_lines']} lines of refusals, {100 * counts['refusal_lines'] / max(1, counts['code']):.1f}%"
    ]
    text += [f"{counts['vague_in_1000']} of 1,000 identifiers are vague: {_counted(counts['vague'])}"]
    text += [f"docstrings that begin with {_counted(counts['evasive_docstrings'])}"]
    text += [f"{len(counts['defined_twice'])} public names in several modules: {_counted(counts['defined_twice'])}"]
    pairs = sum(map(len, counts["imports"].values()))
    text += [f"{counts['packages']} packages; {pairs} pairs of rooms with imports (room -> room, how many):"]
    for name, targets in counts["imports"].items():
        text += [f"  {name} -> " + (", ".join(f"{to} {count}" for to, count in targets.items()) or "nothing")]
    text += [f"a ring: {', '.join(ring)}" for ring in counts["rings"]] or ["no rings: imports can all point one way"]
    return "\n".join(text)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="of the checkout")
    parser.add_argument("--json", action="store_true", help="instead of text")
    options = parser.parse_args()
    if not (options.root / "src" / PACKAGE).is_dir():
        sys.exit(f"{options.root} has no src/{PACKAGE}: give the root of a checkout")
    counts = survey(options.root)
    print(json.dumps(counts, indent=1) if options.json else page(counts))


if __name__ == "__main__":
    main()
