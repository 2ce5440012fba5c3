"""Puts mistakes into the package, one at a time, and says which of them the tests do not see.

    python tools/mutation.py --sample 200
    python tools/mutation.py --of lvit_hf/training/batches.py --tests tests/training/test_parts.py

No file is changed: each mistake is made in a process of its own, forked after the heavy libraries were imported, and
in a folder of its own, since code with a mistake may write to where it runs. The tests that come by its line are run,
the quick ones first, for up to `--seconds`; if none does, those that come by its module. What tests start as processes
of their own runs without the mistake.
"""

import argparse
import ast
import contextlib
import gc
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
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
PACKAGE = [Path("lvit_hf"), Path("lvit_cli")]
SEEN_NOTHING = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
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


def count_mistakes(path: Path) -> int:
    """How many mistakes can be made in a module."""
    return sum(1 for place in places(ast.parse(path.read_text(encoding="utf-8"))) for _ in changes(place))


def mistake(path: Path, number: int) -> tuple[int, str, str]:
    """The line of a mistake, words about it, and the module's source with it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node, fields = [(place, change) for place in places(tree) for change in changes(place)][number]
    before = ast.unparse(node).split("\n")[0]
    line = next(part.lineno for part in ast.walk(node) if hasattr(part, "lineno"))
    for name, value in fields.items():
        setattr(node, name, value)
    ast.fix_missing_locations(tree)
    return line, f"{path}:{line}: {before}  ->  {ast.unparse(node).splitlines()[0]}", ast.unparse(tree)


class Recorder:
    """Writes which lines of which modules each test comes by, how long it takes, and what was loaded at the end."""

    def __init__(self, modules: list[Path], record: Path):
        self.modules, self.record = {str(module.resolve()) for module in modules}, record
        self.tests: dict[str, tuple[float, dict[str, list[int]]]] = {}
        self.others: set[str] = set()
        self.lines: dict[str, set[int]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        lines = self.lines = {}

        def note(frame, event, _):
            # Of the test that runs: the thread of a server keeps the function that it was given by the first.
            self.lines.setdefault(frame.f_code.co_filename, set()).add(frame.f_lineno)
            return note

        def begin(frame, *event):
            return note(frame, *event) if frame.f_code.co_filename in self.modules else None

        start = time.monotonic()
        threading.settrace(begin)
        sys.settrace(begin)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            passed = {module: sorted(numbers) for module, numbers in lines.items()}
            self.tests[item.nodeid] = time.monotonic() - start, passed

    def pytest_runtest_logreport(self, report):
        if not report.passed:  # tests that fail, or are skipped, tell nothing of a mistake
            self.others.add(report.nodeid)

    def pytest_sessionfinish(self):
        for name in self.others:
            self.tests.pop(name, None)
        self.record.write_text(json.dumps([self.tests, list(sys.modules)]), encoding="utf-8")


def concerned(path: Path, line: int, tests: dict[str, tuple[float, dict[str, list[int]]]], limit: float) -> list[str]:
    """The tests to run for a mistake: those of one file together, since they share fixtures, and quick files first.

    Args:
        path: The module's file.
        line: Of the mistake.
        tests: What a `Recorder` wrote.
        limit: Seconds that they may take in all; there is always one.
    """
    module = str(path.resolve())
    near = [name for name, (_, lines) in tests.items() if line in lines.get(module, [])]
    near = near or [name for name, (_, lines) in tests.items() if module in lines] or list(tests)
    files: dict[str, float] = {}
    for name in near:
        files[file_of(name)] = files.get(file_of(name), 0) + tests[name][0]
    near.sort(key=lambda name: (files[file_of(name)], file_of(name), tests[name][0]))
    total = list(itertools.accumulate(tests[name][0] for name in near))
    return [name for name, seconds in zip(near, total) if seconds <= limit] or near[:1]


def file_of(test: str) -> str:
    """The file of a test, by its name."""
    return test.partition("::")[0]


class Only:
    """Runs some of the tests, in their order."""

    def __init__(self, names: list[str]):
        self.places = {name: place for place, name in enumerate(names)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = sorted(
            (item for item in items if item.nodeid in self.places), key=lambda item: self.places[item.nodeid]
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
    options = ["-c", str(settings), "-q", *(part for name in plugins for part in ("-p", name))]
    os._exit(int(pytest.main([*options, *arguments], [plugin] if plugin else [])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", type=Path, nargs="+", default=PACKAGE, help="Python files, or folders of them")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files, or folders of them")
    parser.add_argument("--sample", type=int, help="number of mistakes, drawn by chance; all without it")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--seconds", type=float, default=120.0, help="that the tests of one mistake may take")
    parser.add_argument(
        "--record", type=Path, help="file that keeps which tests come by which lines, for the next run"
    )
    parser.add_argument("--lowest", type=float, default=0.0, help="percent of them below which the exit status is 1")
    options = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    modules = sorted(path for name in options.of for path in ([name] if name.is_file() else name.rglob("*.py")))
    with tempfile.TemporaryDirectory() as folder:
        tests = record_tests(options.tests, modules, options.record or Path(folder) / "record.json")
    found = [(path, number) for path in modules for number in range(count_mistakes(path))]
    if options.sample is not None:
        found = random.Random(options.seed).sample(found, min(options.sample, len(found)))
    unseen = 0
    for count, (path, number) in enumerate(found, 1):
        line, words, source = mistake(path, number)
        names = concerned(path, line, tests, options.seconds)
        limit = 10 + 5 * sum(tests[name][0] for name in names)
        files = dict.fromkeys(map(file_of, names))
        if run_tests(["-x", *files], path, source, limit, Only(names)) in SEEN_NOTHING:
            unseen += 1
            print(f"unseen  {words}", flush=True)
        print(f"{count} of {len(found)}", end="\r", file=sys.stderr, flush=True)
    rate = 100 * (1 - unseen / len(found))
    print(f"{len(found) - unseen} of {len(found)} mistakes are seen: {rate:.0f} %")
    sys.exit(rate < options.lowest)


def record_tests(arguments: list[str], modules: list[Path], record: Path) -> dict[str, tuple[float, dict]]:
    """Runs the tests without a mistake, unless that is on record, and imports what they import beside the package."""
    if not record.exists():
        run_tests(arguments, modules[0], None, 2 * 3600, Recorder(modules, record.resolve()))
    tests, loaded = json.loads(record.read_text(encoding="utf-8"))
    for name in loaded:
        top = name.partition(".")[0]
        if top != "__main__" and not (Path(top).exists() or Path(f"{top}.py").exists()):  # libraries, not what is ours
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.freeze()  # or each process would copy all that is loaded, to look through it
    return tests


if __name__ == "__main__":
    main()
