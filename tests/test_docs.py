"""README and docs/: snippets run, commands exist, pages build without a warning, drawings are what the code is."""

import ast
import html
import importlib
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from debug import models
from debug.commands import COMMANDS
from debug.options import docs_of
from debug.plan import Plan

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^\n]+) -->\n)?^(?P<indent> *)```(?P<language>python|bash)\n(?P<text>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
MARK = re.compile(r"<!-- needs: (\w+) -->")


def snippets(page: Path, language: str, all_of_them: bool = False) -> list[str]:
    """The page's snippets in order; those marked as not run only where all are asked for."""
    found = [match for match in FENCE.finditer(page.read_text("utf-8")) if match["language"] == language]
    return [
        re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        for match in found
        if all_of_them or match["reason"] is None
    ]


def with_snippets(language: str) -> list[Path]:
    return [page for page in PAGES if snippets(page, language, all_of_them=True)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- Python -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", with_snippets("python")[1:], ids=name_of)  # the README: test_public_calls.py
def test_the_python_of_a_page_runs_from_top_to_bottom(page, uri, tmp_path, monkeypatch):
    for needed in MARK.findall(page.read_text("utf-8")):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{name_of(page)} needs the package {needed}, which is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    models.unload_all()
    names = {"__name__": "page"}
    for number, snippet in enumerate(snippets(page, "python")):
        # nnsight reads the source of a trace back, so what runs must lie in a file
        path = tmp_path / f"snippet_{number}.py"
        path.write_text(snippet, "utf-8")
        exec(compile(snippet, str(path), "exec"), names)
    models.unload_all()


def test_python_that_is_not_run_is_python_and_names_what_there_is():
    for page in with_snippets("python"):
        run = snippets(page, "python")
        for snippet in (each for each in snippets(page, "python", all_of_them=True) if each not in run):
            for node in ast.walk(ast.parse(snippet)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("debug"):
                    module = importlib.import_module(node.module or "")
                    assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], name_of(page)


# --- the shell --------------------------------------------------------------------------------------------------------

OURS = re.compile(r"(?:runs|examples|benchmarks|dashboard|tests|docs/tools)/\w+\.(?:py|sh)")
OTHERS = {"export"}
PROGRAMS = {"mlflow": ("server",), "streamlit": ("run",)}


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page, as words; comments are left out."""
    lines = "\n".join(snippets(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@cache
def help_of(script: str) -> str:
    """What a script, or ``-m debug COMMAND``, prints for --help, started as a person would."""
    started = subprocess.run(
        [sys.executable, *script.split(), "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert started.returncode == 0, started.stderr
    return started.stdout


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def unknown_in(words: list[str]) -> list[str]:
    """What a command line names that there is not: a target of make, a script, an option of one."""
    program = Path(words[0]).name
    if program == "make":
        return [word for word in words[1:] if word not in make_targets()]
    if program in OTHERS:
        return []
    if program == "debug":
        if words[1] not in COMMANDS:
            return words[1:2]
        known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", help_of(f"-m debug {words[1]}")))
        own = words[2 : words.index("--") if "--" in words else None]
        return [word for word in own if word.startswith("--") and word.partition("=")[0] not in known]
    script = next((word for word in words if OURS.fullmatch(word)), None)
    if script is None:
        return [] if program in PROGRAMS and words[1] in PROGRAMS[program] else [words[0]]
    if not (ROOT / script).is_file():
        return [script]
    if script.endswith(".sh"):
        return []
    arguments = words[words.index("--") + 1 :] if "--" in words else words[words.index(script) + 1 :]
    options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    known = options_of(script) if options else set()
    return [option for option in options if option not in known]


@cache
def options_of(script: str) -> set[str]:
    if script.startswith("dashboard/"):  # run by Streamlit, which has a --help of its own
        files = (ROOT / "dashboard").glob("*.py")
        return {option for file in files for option in re.findall(r"\"(--[a-z-]+)\"", file.read_text("utf-8"))}
    if not script.startswith(("runs/", "examples/")):  # others import what they measure before they read options
        return set(re.findall(r"\"(--[a-z-]+)\"", (ROOT / script).read_text("utf-8")))
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", help_of(script)))


@pytest.mark.parametrize("page", with_snippets("bash"), ids=name_of)
def test_commands_of_a_page_name_scripts_and_options_that_there_are(page):
    assert commands(page)
    assert {shlex.join(words): unknown for words in commands(page) if (unknown := unknown_in(words))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "make nonsense",
        ".venv/bin/python runs/nothing.py",
        ".venv/bin/python runs/rerun.py RUN_ID --dtypes float32",
        ".venv/bin/debug trac",
        "debug trace --dtypes float32",
        "pip install debug",
        ".venv/bin/streamlit run dashboard/serve.py -- --store x",
    ],
)
def test_a_command_that_is_not_there_is_seen(line):
    assert unknown_in(shlex.split(line))


# --- pages and drawings -----------------------------------------------------------------------------------------------


def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs-material is not installed")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert built.returncode == 0, built.stderr
    pages = {path: path.read_text("utf-8") for path in (tmp_path / "site").rglob("*.html")}
    for path, page in pages.items():
        fetched = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?(https?://[^\"> ]+)", page)
        assert not fetched, f"{path.name} fetches {fetched}"
        if "reference" in path.parts:
            text = re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)  # source code may have them
            assert not re.search(r":(?:class|func|meth|attr|mod|data):", text), f"{path.parent.name}: a role was left"
    plan = pages[tmp_path / "site" / "reference" / "plan" / "index.html"]
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", plan)).split())
    assert {name: doc for name, doc in docs_of(Plan).items() if doc not in text} == {}  # docstrings of fields
    assert 'href="../models/#debug.models.LoadedModel' in plan  # signatures link
    grid = pages[tmp_path / "site" / "reference" / "causal_map" / "index.html"]
    assert re.search(r"The engine fills a <a [^>]*href=\"#debug.causal_map.CausalMap", grid)  # and so do docstrings


def test_the_drawing_of_the_house_is_the_code_s():
    house = runpy.run_path(str(ROOT / "docs" / "tools" / "house.py"))
    imports = house["imports_of"]()
    assert imports["engine"] >= {"models"}
    assert "tracking" not in imports["causal_map"]
    assert imports["paper"] >= {"runner", "causal_experiment_runner"}
    ran = "run python docs/tools/house.py"
    assert house["SVG"].read_text("utf-8") == house["svg"](imports), ran
    assert house["PAGE"].read_text("utf-8") == house["page_with_table"](imports), ran


def test_the_drawing_leaves_out_what_other_arrows_imply():
    house = runpy.run_path(str(ROOT / "docs" / "tools" / "house.py"))
    imports = {"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset()}
    assert house["arrows"](imports) == [("a", "b"), ("b", "c")]
    assert house["levels"](imports) == {"c": 0, "b": 1, "a": 2}


def test_every_public_package_has_a_page_in_the_reference():
    packages = {path.parent.name for path in (ROOT / "src" / "debug").glob("*/__init__.py")}
    described = {path.stem for path in (ROOT / "docs" / "reference").glob("*.md")}
    assert packages <= described


def test_the_page_of_scripts_has_every_script_and_command():
    page = (ROOT / "docs" / "how-to" / "scripts.md").read_text("utf-8")
    assert re.findall(r"^\| `debug ([a-z]+)`", page, re.MULTILINE) == list(COMMANDS)
    scripts = {f"runs/{path.name}" for path in (ROOT / "runs").iterdir() if path.suffix in (".py", ".sh")}
    assert set(re.findall(r"^\| `(runs/[^`]+)`", page, re.MULTILINE)) == scripts


def test_links_and_pictures_of_the_readme_are_there():
    readme = (ROOT / "README.md").read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if not link.startswith("http")]
    assert links
    assert not [link for link in links if not (ROOT / link).is_file()]
    (picture,) = re.findall(r"!\[[^]]*\]\(([^)]+\.png)\)", readme)
    assert (ROOT / picture).stat().st_size < 150_000


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_use_the_words_of_the_field(page):
    """Some of these stopped readers; docs/glossary.md has the words."""
    old = r"\boftener\b|how is asked|what one sees|holds? \*{0,2}no answer|surely above|first less second|go along to"
    assert not re.findall(old, page.read_text("utf-8"), re.IGNORECASE)
