"""The pages hold what they promise: links, lines, names of the package, and messages in the words of the source."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import sae_posttrain
from sae_posttrain import analysis
from sae_posttrain.cli import make_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*/README.md")],
)
CODE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
WIDEST = 200


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_line_but_a_table_is_wide(page):
    lines = CODE.sub("", page.read_text(encoding="utf-8")).splitlines()
    assert [line for line in lines if len(line) > WIDEST and not line.startswith("|")] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^()\s:#]+)(?:#[^()\s]*)?\)", CODE.sub("", page.read_text(encoding="utf-8"))):
        assert (page.parent / target).exists(), target


def test_commands_on_the_pages_are_taken_by_the_command_line(capsys):
    """Without `sft` and `grpo`, whose options TRL's parser reads."""
    commands = [
        command for page in PAGES for command in commands_on(page) if command.split()[0] not in ("sft", "grpo")
    ]
    assert len(commands) >= 40
    refused = []
    for command in commands:
        try:
            parsed, more = make_parser().parse_known_args(shlex.split(command, comments=True))
            refused += [command] if more and not hasattr(parsed, "more") else []
        except SystemExit as error:
            refused += [command] if error.code else []
    assert refused == [], capsys.readouterr().err


def commands_on(page: Path) -> list[str]:
    """What follows `sae-posttrain` on the lines of the page's blocks for a shell."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    return [found[1] for line in lines if (found := re.match(r"(?:[A-Z_]+=\S+ )?sae-posttrain (\S.*)", line.strip()))]


def test_troubleshooting_quotes_the_words_of_the_source():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r'^\| (".*?) \|', page, re.MULTILINE)
    quoted = [words for row in rows for words in re.findall(r'"(.*?)"', row)]
    assert len(rows) >= 25
    texts = " ".join(messages())
    assert [words for words in quoted if words not in texts] == []


def messages() -> list[str]:
    """Every text of the package's source, with something in place of what an f-string fills in."""
    found = []
    for file in (ROOT / "sae_posttrain").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.slow
def test_the_site_builds_and_has_every_public_name(tmp_path):
    pytest.importorskip("mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={"NO_MKDOCS_2_WARNING": "1", "PATH": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    api = (tmp_path / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    for package in (sae_posttrain, analysis):
        assert [each for each in package.__all__ if f'id="{package.__name__}.{each}"' not in api] == []
