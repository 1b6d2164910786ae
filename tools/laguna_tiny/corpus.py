"""Collects the training text: permissively licensed Python sources that the peers extra installs.

A document is either text or ready-made token ids, so that other kinds of data (chats, tool calls)
can join as one more named source. Whole files are held out by a hash of their path, which keeps
the split stable when files are added or removed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Document:
    """One file or conversation; exactly one of `text` and `ids` is set."""

    source: str
    path: str
    split: str  # "train" or "heldout"
    text: str | None = None
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Source:
    """A named package; `limit` bytes are taken at most, `repeats` times an epoch."""

    name: str
    package: str  # import name; "" is the standard library
    licence: str
    limit: int
    repeats: int = 1
    include: str = ""  # only paths that match this regular expression
    exclude: str = r"(?!)"


MEGABYTE = 1_000_000

# Tables, generated parsers and vendored code: text from which a small model learns little, or
# whose licence is not that of the package around it.
STDLIB_TABLES = (
    r"^(encodings|lib2to3/tests/data|ensurepip|pydoc_data|site-packages|idlelib/Icons)/"
    r"|^_sysconfigdata|html/entities\.py$|_data/|test/(cjkencodings|data|encoded_modules|decimal)"
    r"|badsyntax|bad_coding|^sre_constants|test_(ucn|unicodedata|codecmaps|multibyte)"
)
VENDORED = r"(^|/)(_?vendor(ed)?|extern|externals|third_party)/"

SOURCES = (
    Source("stdlib", "", "PSF-2.0", 40 * MEGABYTE, 2, exclude=STDLIB_TABLES + r"|(^|/)tests?/"),
    Source("stdlib-tests", "", "PSF-2.0", 40 * MEGABYTE, 1, r"(^|/)tests?/", STDLIB_TABLES),
    Source("numpy", "numpy", "BSD-3-Clause", 6 * MEGABYTE, exclude=VENDORED),
    Source(
        "torch", "torch", "BSD-3-Clause", 8 * MEGABYTE, exclude=VENDORED + r"|testing/_internal"
    ),
    Source("sympy", "sympy", "BSD-3-Clause", 7 * MEGABYTE, exclude=r"autolev|antlr|rubi"),
    Source("networkx", "networkx", "BSD-3-Clause", 4 * MEGABYTE),
    Source(
        "numba", "numba", "BSD-2-Clause", 4 * MEGABYTE, exclude=r"appdirs|pythoncapi|cloudpickle"
    ),
    Source("transformers", "transformers", "Apache-2.0", 6 * MEGABYTE),
    Source("huggingface_hub", "huggingface_hub", "Apache-2.0", 3 * MEGABYTE),
    Source("mpmath", "mpmath", "BSD-3-Clause", 2 * MEGABYTE),
    Source("fsspec", "fsspec", "BSD-3-Clause", 1 * MEGABYTE),
    Source("jinja2", "jinja2", "BSD-3-Clause", 1 * MEGABYTE),
    Source("click", "click", "BSD-3-Clause", 1 * MEGABYTE),
    Source("rich", "rich", "MIT", 2 * MEGABYTE, exclude=r"_emoji_codes|_unicode_data"),
)


def looks_like_data(text: str) -> bool:
    """True for tables and binary-like files: very long lines, mostly digits, or little ASCII."""
    sample = text[:200_000]
    lines = sample.count("\n") + 1
    digits = len(re.findall(r"\d", sample))
    ascii_letters = len(re.findall(r"[A-Za-z]", sample))
    not_ascii = sum(1 for character in sample if ord(character) > 127)
    return (
        len(sample) / lines > 120
        or digits > 0.2 * len(sample)
        or ascii_letters < 0.3 * len(sample)
        or not_ascii > 0.03 * len(sample)
    )


def _fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _root_and_version(source: Source) -> tuple[Path, str]:
    if not source.package:
        return Path(sysconfig.get_path("stdlib")), platform.python_version()
    spec = importlib.util.find_spec(source.package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {source.package} is not installed: install the peers extra")
    return Path(spec.origin).parent, importlib.metadata.version(source.package)


def _files(source: Source, root: Path) -> list[Path]:
    """The source's files, in an order that does not depend on the machine."""
    chosen = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if "site-packages/" in name or re.search(source.exclude, name):
            continue
        if re.search(source.include, name):
            chosen.append(path)
    return sorted(chosen, key=lambda path: _fraction("order " + path.relative_to(root).as_posix()))


def collect(
    sources: tuple[Source, ...] = SOURCES, heldout_share: float = 0.02, max_file: int = 250_000
) -> tuple[list[Document], list[dict[str, object]]]:
    """All documents and, for each source, its version, licence, bytes and numbers of files."""
    documents: list[Document] = []
    report: list[dict[str, object]] = []
    seen: set[str] = set()
    for source in sources:
        root, version = _root_and_version(source)
        count = {"train": 0, "heldout": 0}
        size = {"train": 0, "heldout": 0}
        for path in _files(source, root):
            try:
                text = path.read_text("utf-8").replace("\r\n", "\n")
            except (UnicodeDecodeError, OSError):
                continue
            digest = hashlib.sha256(text.encode()).hexdigest()
            if not 200 <= len(text) <= max_file or digest in seen or looks_like_data(text):
                continue
            seen.add(digest)
            name = path.relative_to(root).as_posix()
            split = "heldout" if _fraction(f"{source.name}/{name}") < heldout_share else "train"
            count[split] += 1
            size[split] += len(text.encode())
            documents.append(Document(source.name, name, split, text))
            if sum(size.values()) >= source.limit:
                break
        report.append(
            {
                "name": source.name,
                "version": version,
                "licence": source.licence,
                "repeats": source.repeats,
                "train_files": count["train"],
                "train_bytes": size["train"],
                "heldout_files": count["heldout"],
                "heldout_bytes": size["heldout"],
            }
        )
    return documents, report


def save(documents: list[Document], report: list[dict[str, object]], work: Path) -> None:
    """Writes documents.jsonl and, for the model card, sources.json."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "documents.jsonl").open("w", encoding="utf-8") as out:
        for document in documents:
            fields = {key: value for key, value in asdict(document).items() if value is not None}
            out.write(json.dumps(fields, ensure_ascii=False) + "\n")
    (work / "sources.json").write_text(json.dumps(report, indent=2) + "\n")


def read(work: Path, split: str) -> Iterator[Document]:
    """The documents of a split, in the order of collection."""
    with (work / "documents.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            document = Document(**json.loads(line))
            if document.split == split:
                yield document
