"""Commands run by calling the shell tool, and answers made from what it printed."""

from __future__ import annotations

import json
import random
import string

from laguna_tiny.dialogue.exchange import Exchange, answer, call, pick, response, user

WORDS = (
    "data", "main", "test", "util", "config", "model", "server", "client", "parser", "report",
    "index", "notes", "build", "image", "cache", "table", "query", "token", "graph", "setup",
    "logs", "result", "script", "header", "layer", "train", "sample", "public", "admin", "docs",
    "source", "backup", "budget", "module", "router", "kernel", "matrix", "vector", "golden",
)  # fmt: skip
SUFFIXES = ("py", "txt", "md", "json", "toml", "csv", "log", "yaml", "sh", "cfg", "html")
COMMANDS = (
    "uname -a", "uname -s", "uname -r", "uname -m", "ls", "ls -la", "ls {d}", "ls -l {d}", "pwd",
    "whoami", "date", "hostname", "id", "uptime", "nproc", "env", "df -h", "free -m", "ps aux",
    "cat {f}", "head -n {n} {f}", "tail -n {n} {f}", "wc -l {f}", "wc -w {f}", "du -sh {d}",
    "git status", "git log --oneline -n {n}", "git branch", "git diff {f}", "git add {f}",
    "git show {w}", "git checkout {w}", "python --version", "python {w}.py", "python -m {w}",
    "pip list", "pip install {w}", "pip show {w}", "pytest -q", "pytest tests/test_{w}.py",
    "grep -rn {w} {d}", "grep {w} {f}", "find {d} -name {f}", "mkdir {w}", "mkdir -p {d}", "rm {f}",
    "cp {f} {g}", "mv {f} {g}", "touch {f}", "echo {w}", "echo {w} {v}", "which {w}", "make",
    "make {w}", "chmod +x {w}.sh", "bash {w}.sh", "sh {w}.sh", "stat {f}", "file {f}", "sort {f}",
    "sleep {n}", "kill {n}", "node --version", "docker ps", "ruff check {d}", "mypy {d}",
    "diff {f} {g}", "tar -xzf {w}.tar.gz", "curl {w}.org", "ping -c {n} {w}.org", "printenv {U}",
)  # fmt: skip
ASKED = (
    "Run {c}", "Run {c}", "Run `{c}`", "Please run {c}", "Execute {c}", "run {c}", "run {c} please",
    "Can you run {c}?", "Could you run `{c}` for me?", "Run {c} and tell me what it prints.",
    "What does `{c}` print?", "Use the shell to run {c}", "In the shell: {c}", "$ {c}",
    "Run the command {c}", "Please execute `{c}`.", "Try {c}", "Run {c} in the shell.",
    "I want to see the output of {c}", "Call the shell with {c}",
)  # fmt: skip
WISHES = {  # asked for without naming the command
    "uname -a": ("Which kernel is this?", "What system are we on?", "Which OS is running here?"),
    "ls": ("List the files here.", "Which files are in this directory?", "Show me the files."),
    "pwd": ("Which directory are we in?", "What is the current directory?", "Where are we?"),
    "whoami": ("Which user am I?", "Who am I logged in as?", "What is my user name?"),
    "date": ("What is the date?", "What time is it?", "Which day is today?"),
    "nproc": ("How many cores are there?", "How many CPUs does this machine have?"),
    "git status": ("What is the state of the repository?", "Is the working tree clean?"),
    "python --version": ("Which Python is installed?", "Which version of Python is this?"),
    "cat {f}": ("Show me {f}", "What is in {f}?", "Print the file {f}", "Read {f}"),
    "wc -l {f}": ("How many lines does {f} have?", "Count the lines of {f}"),
    "rm {f}": ("Delete {f}", "Remove the file {f}", "Please delete {f}"),
    "mkdir {w}": ("Make a directory {w}", "Create the directory {w}"),
    "du -sh {d}": ("How big is {d}?", "How much space does {d} take?"),
    "grep -rn {w} {d}": ("Search for {w} in {d}", "Where does {w} occur in {d}?"),
    "pytest -q": ("Run the tests.", "Do the tests pass?", "Run all tests"),
    "touch {f}": ("Create an empty file {f}", "Make an empty file called {f}"),
}
THOUGHTS = (
    "need shell", "I need the shell.", "The shell tool runs this.", "run {c}", "I run `{c}`.",
    "The user wants me to run a command.", "The user wants the output of `{c}`.",
)  # fmt: skip
SAID_BEFORE = ("", "", "", "", "I will run that.", "Let me run it.")
THOUGHTS_AFTER = (
    "The command worked.", "I have the output.", "It printed something.", "exit code 0",
    "The shell answered.",
)  # fmt: skip
ANSWERS = ("The output is:\n{o}", "It printed:\n{o}", "`{c}` printed:\n{o}", "{o}")
SHORT_ANSWERS = ("It printed `{o}`.", "The output is `{o}`.")
SILENT = ("`{c}` finished without output.", "Done: `{c}` printed nothing.", "Done.")
FAILED = ("It failed with exit code {x}:\n{o}", "The command failed:\n{o}", "Error {x}:\n{o}")


def word(rng: random.Random) -> str:
    """A word of the list, or letters at random, so that copying is learned and not the list."""
    if rng.random() < 0.6:
        return pick(rng, WORDS)
    letters = "".join(pick(rng, string.ascii_lowercase) for _ in range(rng.randint(2, 7)))
    return letters + (str(rng.randint(0, 99)) if rng.random() < 0.3 else "")


def file_name(rng: random.Random) -> str:
    """With a suffix, sometimes in a directory."""
    name = f"{word(rng)}.{pick(rng, SUFFIXES)}"
    return f"{word(rng)}/{name}" if rng.random() < 0.25 else name


def directory(rng: random.Random) -> str:
    """A relative or an absolute path."""
    path = "/".join(word(rng) for _ in range(rng.randint(1, 2)))
    return pick(rng, ("", "", "/", "./")) + path


def filling(rng: random.Random) -> dict[str, str]:
    """Something for each slot of COMMANDS."""
    return {
        "w": word(rng), "v": word(rng), "U": word(rng).upper(), "d": directory(rng),
        "f": file_name(rng), "g": file_name(rng), "n": str(rng.randint(1, 300)),
    }  # fmt: skip


def kernel(rng: random.Random) -> str:
    """What uname -a prints."""
    version = f"{rng.randint(4, 25)}.{rng.randint(0, 20)}.{rng.randint(0, 99)}"
    return pick(
        rng,
        (
            f"Darwin arm64 {version}",
            f"Darwin {word(rng)}.local {version} Darwin Kernel Version {version} arm64",
            f"Linux {word(rng)} {version}-generic x86_64 GNU/Linux",
            f"Linux {word(rng)} {version} aarch64",
            "Darwin arm64",
        ),
    )


def printed(rng: random.Random, command: str, slots: dict[str, str]) -> str:
    """Something that the command might print."""
    program = command.split()[0]
    name, number = word(rng), rng.randint(0, 999)
    lines = [file_name(rng) for _ in range(rng.randint(1, 4))]
    known = {
        "uname": kernel(rng), "pwd": "/" + "/".join((word(rng), word(rng))), "whoami": name,
        "hostname": f"{name}.local", "nproc": str(rng.randint(1, 64)), "ls": "\n".join(lines),
        "date": f"{pick(rng, ('Mon', 'Tue', 'Fri', 'Sun'))} Nov {rng.randint(1, 30)} "
        f"{rng.randint(10, 23)}:{rng.randint(10, 59)}:{rng.randint(10, 59)} UTC 2026",
        "python": f"Python 3.{rng.randint(8, 14)}.{rng.randint(0, 20)}", "du": f"{number}M",
        "node": f"v{rng.randint(16, 24)}.{rng.randint(0, 20)}.0", "wc": str(number),
        "git": pick(rng, (f"On branch {name}", "nothing to commit, working tree clean")),
        "pytest": f"{number} passed in {rng.randint(1, 60)}.{rng.randint(10, 99)}s",
        "find": "\n".join(lines[:2]), "which": f"/usr/bin/{slots['w']}", "env": f"HOME=/{name}",
        "echo": command.removeprefix("echo "), "id": f"uid={number}({name})",
        "uptime": f"up {rng.randint(2, 300)} days", "mypy": "Success: no issues found",
        "ruff": "All checks passed!", "sort": "\n".join(word(rng) for _ in range(3)),
    }  # fmt: skip
    plain = " ".join([name, *(word(rng) for _ in range(rng.randint(0, 3)))])
    return known.get(program, pick(rng, (plain, str(number), f"{name}: {number}")))


SILENT_PROGRAMS = {"mkdir", "rm", "cp", "mv", "touch", "chmod", "sleep", "kill", "tar"}


def outcome(rng: random.Random, command: str, slots: dict[str, str]) -> tuple[str, str, int]:
    """stdout, stderr, exit code."""
    program = command.split()[0]
    if rng.random() < 0.12:
        subject = command.split()[-1]
        said = pick(rng, ("No such file or directory", "Permission denied", "command not found"))
        return "", f"{program}: {subject}: {said}", pick(rng, (1, 2, 127))
    if program in SILENT_PROGRAMS:
        return "", "", 0
    return printed(rng, command, slots), "", 0


def reported(rng: random.Random, out: str, error: str, code: int) -> str:
    """The tool's response, a JSON object."""
    ending = "\n" if out and rng.random() < 0.3 else ""
    fields: dict[str, object] = {"stdout": out + ending}
    if error or rng.random() < 0.25:
        fields["stderr"] = error
    fields["exit_code"] = pick(rng, (str(code), code))
    return json.dumps(fields)


def final(rng: random.Random, out: str, error: str, code: int) -> str:
    """The template of the last answer."""
    if code:
        return pick(rng, FAILED)
    if not out:
        return pick(rng, SILENT)
    return pick(rng, ANSWERS if "\n" in out else ANSWERS + SHORT_ANSWERS)


def request(rng: random.Random) -> tuple[str, str, str, dict[str, str]]:
    """The template of the question, the question, the command and what its slots hold."""
    slots = filling(rng)
    if rng.random() < 0.2:
        pattern = pick(rng, tuple(WISHES))
        asked = pick(rng, WISHES[pattern])
        return asked, asked.format(**slots), pattern.format(**slots), slots
    command = pick(rng, COMMANDS).format(**slots)
    asked = pick(rng, ASKED)
    return asked, asked.format(c=command), command, slots


def exchange(rng: random.Random) -> Exchange:
    """A command with the shell at hand."""
    asked, text, command, slots = request(rng)
    out, error, code = outcome(rng, command, slots)
    filled = {"c": command, "o": out or error, "x": code}
    thought = pick(rng, THOUGHTS).format(c=command)
    after = "The command failed." if code else pick(rng, THOUGHTS_AFTER)
    return Exchange(
        f"shell/{asked}/{command}",
        (
            user(text),
            call(thought, "shell", {"cmd": command}, pick(rng, SAID_BEFORE)),
            response(reported(rng, out, error, code)),
            answer(after, final(rng, out, error, code).format(**filled)),
        ),
    )


def refusal(rng: random.Random) -> Exchange:
    """A command without a shell."""
    asked, text, command, _ = request(rng)
    thought = pick(rng, ("There is no shell tool.", "no shell here", "I have no shell."))
    said = pick(
        rng,
        (
            "I have no shell tool, so I cannot run `{c}`.",
            "Sorry, I cannot run `{c}`: there is no shell tool.",
            "I would need a shell tool to run `{c}`, and I have none.",
        ),
    )
    return Exchange(
        f"no shell/{asked}/{command}", (user(text), answer(thought, said.format(c=command)))
    )
