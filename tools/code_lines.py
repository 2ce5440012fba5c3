"""Counts lines of code, without blank lines, comments and docstrings: `python tools/code_lines.py FOLDER...`."""

import ast
import io
import sys
import tokenize
from pathlib import Path


NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def count_lines(source: str) -> int:
    """Number of lines of a module on which there is code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


if __name__ == "__main__":
    counts = {
        folder: {path: count_lines(path.read_text(encoding="utf-8")) for path in Path(folder).rglob("*.py")}
        for folder in sys.argv[1:]
    }
    for files in counts.values():
        for room in sorted({path.parent for path in files}):
            print(f"{sum(lines for path, lines in files.items() if path.parent == room):>7,}  {room}")
    print(f"{sum(sum(files.values()) for files in counts.values()):>7,}  in all")
