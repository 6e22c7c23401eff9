"""House English: words and names that this project does not use, with the word it uses instead.

``python -m tests.house_english [FOLDER ...]`` lists what is left, by file and line.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.citations import HOLE, PAGES, ROOT, texts_of_source

# pattern of a word in prose (docstrings, comments, messages, flags, pages), and what to write
WORDS = {
    r"t[o]ld|t[e]ll(?:s|ing)?": "say, report, give",
    r"pictur[e]s?|pictur[e]d": "image",
    r"an[e]w": "again, new",
    r"g(?:o|oes|oing|one|went) o[n](?! the)": "continue, resume, proceed",
    r"who[l]e": "complete, all, entire",
    r"is an err[o]r|are err[o]rs": "fails, is refused",
    r"lear[n]s?|lear[n]t": "train",
    r"nough[t]": "zero, nothing",
    r"hal[f]-written": "incomplete",
}
# a docstring starts with a verb in the third person or with the noun that it returns
STARTS = re.compile(r"(Wha[t]|O[f]|Wheth[e]r|Whos[e]|A[s]|Whic[h]|Ho[w]|Wher[e]|Whe[n]|Wh[o])\b")
# names of variables, parameters, attributes and functions; also a part between underscores
NAMES = {"t" + "old", "w" + "hole", "w" + "anted", "an" + "ew", "f" + "ound", "t" + "ell"}
_LETTERS = re.compile(r"[A-Za-z]")
_PATTERNS = [
    (re.compile(rf"(?<![\w./-])(?:{words})(?![\w(=-]|\.py)", re.IGNORECASE), hint)
    for words, hint in WORDS.items()
]
_CODE = re.compile(r"``.+?``|`[^`\n]+`|^```.*?^```", re.DOTALL | re.MULTILINE)


def text_problems(file: str, source: str) -> list[str]:
    """Returns a line for each word of a source or page that the house does not use."""
    problems = []
    for line, text, is_docstring in _texts(file, source):
        if is_docstring and STARTS.match(text.strip()):
            problems.append(f"{file}:{line}: a docstring starts with {text.split()[0]!r}")
        prose = _CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)
        for pattern, hint in _PATTERNS:
            for match in pattern.finditer(prose):
                place = line + text.count("\n", 0, match.start())
                problems.append(f"{file}:{place}: {match[0]!r}; write {hint}")
    return problems


def name_problems(file: str, source: str) -> list[str]:
    """Returns a line for each name bound in a source that says how, not what, a value is."""
    return [
        f"{file}:{line}: the name {name!r} does not say what it holds"
        for line, name in _bound_names(ast.parse(source))
        if NAMES & set(name.strip("_").split("_"))
    ]


def _texts(file: str, source: str) -> Iterator[tuple[int, str, bool]]:
    if not file.endswith(".py"):
        yield 1, source, False
        return
    for text in texts_of_source(source, file):
        # a word alone is a key or a name, no prose
        if " " in text.text.replace(HOLE, "").strip() and _LETTERS.search(text.text):
            yield text.line, text.text, text.is_docstring


def _bound_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def files(folders: list[str]) -> list[Path]:
    """Returns the sources and pages below the folders, without fixtures and other people's text."""
    patterns = [f"{folder}/**/*.{kind}" for folder in folders for kind in ("py", "md")]
    patterns += [folder for folder in folders if folder.endswith((".py", ".md"))]
    paths = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return sorted(path for path in paths if "fixtures" not in path.parts)


def problems_below(folders: list[str]) -> list[str]:
    """Returns all problems of the files below the folders."""
    problems = []
    for path in files(folders):
        name, source = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        problems += text_problems(name, source)
        if name.endswith(".py"):
            problems += name_problems(name, source)
    return problems


EVERYWHERE = ["xvla_jax", "data", "eval", "scripts", "configs", "benchmarks", "tests", *PAGES]

if __name__ == "__main__":
    lines = problems_below(sys.argv[1:] or EVERYWHERE)
    sys.stdout.write("\n".join([*lines, f"{len(lines)} problems\n"]))
