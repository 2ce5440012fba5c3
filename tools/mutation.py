"""Puts mistakes into a module, one at a time, and says which of them the tests do not see.

    python tools/mutation.py lvit_hf/training/batches.py tests/training/test_parts.py tests/training/test_trainer.py

No file is changed: each mistake is made in a process of its own, forked after the heavy libraries were imported, and
in a folder of its own, since code with a mistake may write to where it runs. What tests start as processes of their
own runs without the mistake, so leave such tests out (`-k`).
"""

import argparse
import ast
import contextlib
import gc
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest


SWAPS: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
    **{ast.BitXor: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift},
}
# Hints of types, and sentences for a reader, which a test should not repeat.
LEFT_ALONE = ("annotation", "returns", "exc", "decorator_list")
SYMMETRIC = ("isinstance", "max", "min", "zip")
MESSAGES = ("logger.", "warnings.", "print(")


def changes(node: ast.AST) -> Iterator[dict]:
    """The mistakes that may be made in one place, as fields of the node to replace."""
    match node:
        case ast.Constant(value=bool(value)):
            yield {"value": not value}
        case ast.Constant(value=int(value) | float(value)):
            yield {"value": value + 1}
        case ast.Compare(ops=[first, *others]):
            yield {"ops": [SWAPS[type(first)](), *others]}
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) | ast.BoolOp(op=operator):
            yield {"op": SWAPS[type(operator)]()}
        case ast.UnaryOp(op=ast.USub()):
            yield {"op": ast.UAdd()}
        case ast.Call(args=arguments, keywords=named):
            yield from ({"keywords": [*named[:index], *named[index + 1 :]]} for index in range(len(named)))
            if len(arguments) == 2 and ast.unparse(node.func) not in SYMMETRIC:
                yield {"args": arguments[::-1]}
        case _:
            yield from changes_of_flow(node)


def changes_of_flow(node: ast.AST) -> Iterator[dict]:
    """Branches taken the other way, and things not done."""
    match node:
        case ast.If(test=test) | ast.IfExp(test=test) if not isinstance(test, ast.Compare):
            yield {"test": ast.UnaryOp(ast.Not(), test)}
        case ast.comprehension(ifs=[_, *_]):
            yield {"ifs": []}
        case ast.Return(value=value) if value is not None and ast.unparse(value) != "None":
            yield {"value": None}
        case ast.Expr(value=ast.Call() as call) if not ast.unparse(call).startswith(MESSAGES):
            yield {"value": ast.Constant(...)}


def places(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes in which a mistake would be one of behaviour."""
    yield node
    for name, value in ast.iter_fields(node):
        if name not in LEFT_ALONE:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from places(child)


def mistakes(path: Path) -> Iterator[tuple[int, str, str]]:
    """The line of each mistake that can be made in a module, words about it, and the module's source with it."""
    text = path.read_text(encoding="utf-8")
    count = sum(1 for place in places(ast.parse(text)) for _ in changes(place))
    for number in range(count):
        tree = ast.parse(text)  # anew, since it is changed in place
        node, fields = [(place, change) for place in places(tree) for change in changes(place)][number]
        before = ast.unparse(node).split("\n")[0]
        line = next(part.lineno for part in ast.walk(node) if hasattr(part, "lineno"))
        for name, value in fields.items():
            setattr(node, name, value)
        ast.fix_missing_locations(tree)
        yield line, f"{path}:{line}: {before}  ->  {ast.unparse(node).splitlines()[0]}", ast.unparse(tree)


class Recorder:
    """Writes which lines of a module each test comes by, how long it takes, and what was loaded at the end."""

    def __init__(self, module: Path, record: Path):
        self.module, self.record = str(module.resolve()), record
        self.tests: dict[str, tuple[float, list[int]]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        lines: set[int] = set()

        def note(frame, event, _):
            lines.add(frame.f_lineno)
            return note

        start = time.monotonic()
        sys.settrace(lambda frame, *event: note(frame, *event) if frame.f_code.co_filename == self.module else None)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.tests[item.nodeid] = time.monotonic() - start, sorted(lines)

    def pytest_sessionfinish(self):
        self.record.write_text(json.dumps([self.tests, list(sys.modules)]), encoding="utf-8")


class NearestFirst:
    """Runs the tests that come by a line before the others, and quick ones before slow ones."""

    def __init__(self, line: int, tests: dict[str, tuple[float, list[int]]]):
        self.line, self.tests = line, tests

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        seconds: dict[Path, float] = {}
        for item in items:
            seconds[item.path] = seconds.get(item.path, 0) + self.tests[item.nodeid][0]
        # Tests of one file stay together, since they share fixtures.
        items.sort(
            key=lambda item: (
                self.line not in self.tests[item.nodeid][1],
                seconds[item.path],
                self.tests[item.nodeid][0],
            )
        )


def run_tests(arguments: list[str], path: Path, source: str | None, limit: float, plugin: object = None) -> int:
    """Runs tests in a process of their own, with another source of a module, and returns the exit status.

    Args:
        arguments: What pytest takes.
        path: The module's file.
        source: The source to run instead of the file's.
        limit: Seconds after which the process is killed.
        plugin: One of pytest.
    """
    settings, module = Path("pyproject.toml").resolve(), path.resolve()
    arguments = [str(Path(name).resolve()) if Path(name).exists() else name for name in arguments]
    folder = tempfile.mkdtemp()
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        shutil.rmtree(folder, ignore_errors=True)
        return os.waitstatus_to_exitcode(status)
    os.chdir(folder)
    signal.setitimer(signal.ITIMER_REAL, limit)
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    read = SourceFileLoader.get_code

    def get_code(loader: SourceFileLoader, name: str):
        if source is not None and Path(loader.path).resolve() == module:
            return compile(source, str(path), "exec")
        return read(loader, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]
    # The plugin of Hypothesis only adds to reports, and takes longer to start than most tests take.
    plugins = [f"no:{name}" for name in ("cacheprovider", "hypothesispytest", "xdist")]
    options = ["-c", str(settings), "-x", "-q", *(part for name in plugins for part in ("-p", name))]
    os._exit(int(pytest.main([*options, *arguments], [plugin] if plugin else [])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path, help="a Python file of the package")
    parser.add_argument("tests", nargs="+", help="what pytest takes: files, and -k or other options after --")
    parser.add_argument("--sample", type=int, help="number of mistakes, drawn by chance; all without it")
    parser.add_argument("--lowest", type=float, default=0.0, help="percent of them below which the exit status is 1")
    options = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        if run_tests(options.tests, options.module, None, 3600, Recorder(options.module, record)):
            parser.error("The tests fail without any mistake.")
        tests, loaded = json.loads(record.read_text(encoding="utf-8"))
        for name in loaded:
            if name.partition(".")[0] not in ("lvit_hf", "lvit_cli", "conftest", "tests", "__main__"):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
    gc.freeze()  # or each process would copy all that is loaded, to look through it
    limit = 10 + 5 * sum(seconds for seconds, _ in tests.values())
    found = list(mistakes(options.module))
    if options.sample is not None:
        found = random.Random(0).sample(found, min(options.sample, len(found)))
    unseen = []
    for number, (line, words, source) in enumerate(found, 1):
        if run_tests(options.tests, options.module, source, limit, NearestFirst(line, tests)) == 0:
            unseen.append(words)
            print(f"unseen  {words}", flush=True)
        print(f"{number} of {len(found)}", end="\r", file=sys.stderr, flush=True)
    rate = 100 * (1 - len(unseen) / len(found))
    print(f"{len(found) - len(unseen)} of {len(found)} mistakes in {options.module} are seen: {rate:.0f} %")
    sys.exit(rate < options.lowest)


if __name__ == "__main__":
    main()
