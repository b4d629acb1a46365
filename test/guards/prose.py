# What files say of themselves must be true: sources lead somewhere, entry points exist.
# Entry points: citations, entry_points, note_mentions, known_names.
# A source is a paper id, a page under docs/ that exists, or a name that docs/papers.md lists under "Names".
"""Checks of the prose of a source tree."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from guards.rules import sources

ROOT = Path(__file__).resolve().parents[2]
PAPER = re.compile(r"arXiv:\d{4}\.\d{5}")
PAGE = re.compile(r"\bdocs/([\w-]+\.md)(?:#([\w-]+))?")
NOTE = re.compile(r"\b(?:recipe|training_infra|acceleration|conversion_methods)(?:\.md)? (?:eq\. |sec\. )?[A-Z\d]")
OUTSIDE = re.compile(
    r"(?<![/([])\b(?:windows|hybrids|latent|ecosystem|acceleration|training_infra|conversion_methods|recipe)\.md\b"
)
ITEM = re.compile(r"`?([A-Za-z_]\w*)")


def known_names(page: Path = ROOT / "docs" / "papers.md") -> set[str]:
    """The names that the page's list under "## Names" explains."""
    _, _, after = page.read_text(encoding="utf-8").partition("\n## Names\n")
    return set(re.findall(r"^- \*\*(.+?)\*\*", after.partition("\n## ")[0], re.M))


def note_mentions(text: str) -> list[str]:
    """Mentions of notes that are not in the repository."""
    return [found.group() for rule in (NOTE, OUTSIDE) for found in rule.finditer(text)]


def citations(root: Path, docs: Path = ROOT / "docs") -> list[str]:
    """`Source:` clauses that lead nowhere, pages that do not exist, and notes outside the repository."""
    names, found = known_names(docs / "papers.md"), []
    for name, _, text in _prose(root):
        found += [f"{name}: {note!r} is a note outside the repository" for note in note_mentions(text)]
        found += [f"{name}: docs/{page} has no such page or heading" for page in _missing_pages(text, docs)]
        for clause in text.split("Source:")[1:]:
            if not (PAPER.search(clause) or PAGE.search(clause) or any(_named(one, clause) for one in names)):
                found.append(f"{name}: source {' '.join(clause.split())[:60]!r} leads nowhere")
    return found


def _prose(root: Path) -> Iterator[tuple[str, str, str]]:
    for name, text, tree in sources(root):
        comments = "\n".join(line.strip() for line in text.splitlines() if line.lstrip().startswith("#"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        pieces = [comments, *(ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented))]
        yield from ((name, text, piece) for piece in pieces if piece)


def _missing_pages(text: str, docs: Path) -> list[str]:
    return [
        f"{page}{'#' + anchor if anchor else ''}"
        for page, anchor in PAGE.findall(text)
        if not _leads(docs / page, anchor)
    ]


def _leads(path: Path, anchor: str) -> bool:
    if not path.exists() or not anchor or path.suffix != ".md":
        return path.exists()
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return anchor in {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """Links of a page that lead to no file of the repository, or to no heading of it; addresses of the net are not
    tried."""
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    own = [link.partition("#") for link in links if not re.match(r"[a-z]+:", link)]
    return [
        f"{page.name}: {path}{mark}{anchor} leads nowhere"
        for path, mark, anchor in own
        if not _leads(page.parent / path if path else page, anchor)
    ]


def _named(name: str, clause: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", clause) is not None


def entry_points(root: Path) -> list[str]:
    """Names in `# Entry points:` that the file neither defines nor imports; in an __init__.py, the folder."""
    found = []
    for name, text, tree in sources(root):
        line = next((line for line in text.splitlines()[:6] if line.startswith("# Entry points: ")), "")
        found += [f"{name}: no {item} here" for item in _listed(line) if item not in _offered(root / name, tree)]
    return found


def _listed(line: str) -> list[str]:
    listed = line.removeprefix("# Entry points: ")
    previous = None
    while previous != listed:
        previous, listed = listed, re.sub(r"\{[^{}]*\}|\[[^\[\]]*\]|\([^()]*\)", "", listed)
    listed = re.split(r"[.;:] |\. ?$", listed.rstrip(","))[0]
    pieces = [piece.strip() for piece in re.split(r",| / ", listed)]
    return [found.group(1) for piece in pieces if " " not in piece and (found := ITEM.match(piece))]


def _offered(path: Path, tree: ast.Module) -> set[str]:
    names = {alias.asname or alias.name for node in ast.walk(tree) for alias in getattr(node, "names", ())
             if isinstance(alias, ast.alias)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif path.name == "__init__.py" and isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names | {"none", "python", "hildanext"} | {other.stem for other in path.parent.glob("*.py")}
