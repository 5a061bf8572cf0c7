"""The documentation's commands: each does what the page says, as far as this machine can have it done."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from test_bad_input import Call
from test_bad_input import pkt as pkt

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ALONE = ("plan", "strategies", "models", "tasks", "sweep")  # need nothing but the command
OF_A_STORE = ("compare", "report", "export", "store")  # are asked of a small sweep's, under the name that the pages use


def commands() -> list[tuple[str, str, str]]:
    """Page, command, and what the page shows of its output."""
    found = []
    for page in PAGES:
        lines = page.read_text().replace("\\\n", " ").split("\n")
        for number, line in enumerate(lines):
            if command := re.match(r"    (\$ )?(pkt [a-z].*?)( +# .*)?$", line):
                shown = []
                for after in lines[number + 1 :] if command[1] else ():
                    if not after.startswith("    ") or after.startswith("    $ "):
                        break
                    shown.append(after[4:])
                found.append((page.name, " ".join(command[2].split()), "\n".join(shown)))
    return found


COMMANDS = commands()


def without(words: list[str], *options: str) -> list[str]:
    """The command without some options and their values."""
    kept, skip = [], False
    for word in words:
        if not skip and word not in options:
            kept.append(word)
        skip = word in options
    return kept


@pytest.mark.parametrize(("page", "command", "shown"), COMMANDS, ids=[f"{page} {said}" for page, said, _ in COMMANDS])
def test_every_option_is_one(page: str, command: str, shown: str) -> None:
    """Names, types and arguments, as the command line reads them; what is no verb of it fails as well."""
    from cli.main import app

    words = shlex.split(command)[1:]
    verb: Any = typer.main.get_command(app)
    while hasattr(verb, "commands"):
        verb = verb.commands[words.pop(0)]
    verb.make_context(verb.name, words)


def of(verbs: tuple[str, ...]) -> Any:
    some = [one for one in COMMANDS if one[1].split()[1] in verbs]
    return pytest.mark.parametrize(("command", "shown"), [one[1:] for one in some], ids=[one[1] for one in some])


@of(ALONE)
def test_it_does_what_the_page_says(command: str, shown: str, pkt: Call, tmp_path: Path) -> None:
    """A sweep as its dry run; rows are those of the page's reader."""
    (tmp_path / "my.yaml").write_text("recipe: {teacher: llama2-13b}\n")
    words = without(shlex.split(command)[1:], "--address", "--store", "--data")
    if words[0] == "sweep" and "--dry-run" not in words:
        words.append("--dry-run")
    code, out, err = pkt(*words)
    assert code == 0, err
    if shown:
        assert out.rstrip() == shown.rstrip()


@pytest.mark.long
@pytest.mark.xdist_group("first")
@of(OF_A_STORE)
def test_it_does_that_with_a_sweep(
    command: str, shown: str, pkt: Call, swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PKT_STORE", str(swept))
    code, out, err = pkt(*without(shlex.split(command)[1:], "--store"))
    assert code == 0, err
    assert out


def test_the_pages_name_files_and_targets_that_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for page in PAGES:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert "://" in link or (page.parent / link).exists(), f"{page.name} names {link}"
        assert (
            set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^    make ([a-z-]+)", text, flags=re.M))
            <= targets
        )
    assert {page.name for page in PAGES} >= {"arms.md", "verdict.md", "clusters.md", "plan.md", "speed.md"}
    assert sum(bool(shown) for _, _, shown in COMMANDS) >= 2
