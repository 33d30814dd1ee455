"""Every file shown in the documentation runs, and every output shown is the output."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILE = re.compile(r"<!-- file: (?P<name>\S+) -->\n```\w*\n(?P<content>.*?)^```$", re.DOTALL | re.MULTILINE)
RUN = re.compile(
    r"<!-- run: pytest (?P<args>.*?) -->\n```\w*\n(?P<output>.*?)^```$", re.DOTALL | re.MULTILINE
)
PYTHON = re.compile(
    r"(?P<marked><!-- file: \S+ -->\n)?```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"\]\((?!https?:|#)(?P<target>[^)#]+)(#[^)]*)?\)")


def files(page: Path) -> dict[str, str]:
    return {match["name"]: match["content"] for match in FILE.finditer(page.read_text())}


def write(pytester: pytest.Pytester, page: Path) -> None:
    """The page's files, over those of the replay page that they stand on."""
    for name, content in {**files(ROOT / "docs" / "replay.md"), **files(page)}.items():
        (pytester.path / name).write_text(content)


def with_files(pages: list[Path]) -> list[Path]:
    """All but the README, whose test breaks its budget on purpose and is held to its output."""
    shown = [page for page in pages if any(name.endswith(".py") for name in files(page))]
    return [page for page in shown if page.name != "README.md"]


@pytest.mark.parametrize("page", with_files(PAGES), ids=lambda page: page.name)
def test_the_test_files_of_a_page_pass(
    page: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the simulated machine of the replay page."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    write(pytester, page)
    switches = ("--llm-energy", "--models=demo", "--llm-energy-meters=replay:replay.toml")
    result = pytester.runpytest_subprocess("-pno:cacheprovider", "-pno:benchmark", *switches)
    outcomes = result.parseoutcomes()
    assert outcomes.get("passed", 0) >= 1
    assert set(outcomes) == {"passed"}


def runs() -> list[tuple[Path, str, str]]:
    return [(page, m["args"], m["output"]) for page in PAGES for m in RUN.finditer(page.read_text())]


@pytest.mark.parametrize(("page", "args", "output"), runs(), ids=lambda value: getattr(value, "name", ""))
def test_an_output_that_is_shown_is_the_output(
    page: Path, args: str, output: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line by line, in order."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    write(pytester, page)
    result = pytester.runpytest_subprocess("-pno:cacheprovider", "-pno:benchmark", *args.split())
    printed = [line.rstrip() for line in result.stdout.lines]
    wanted = [line.rstrip() for line in output.splitlines() if line.strip()]
    position = 0
    for line in wanted:
        assert line in printed[position:], f"{page.name} shows a line that is not printed: {line!r}"
        position += printed[position:].index(line) + 1


def test_there_is_an_output_to_check() -> None:
    """No check passes on absence."""
    assert runs()
    assert with_files(PAGES)


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "docs" / "decisions").glob("*.md"))], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Every relative link is a file."""
    for match in LINK.finditer(page.read_text()):
        assert (page.parent / match["target"]).exists(), f"{page.name} links to {match['target']}"


def snippets(page: Path) -> list[str]:
    """The Python of a page that is no file of its own, in order: later blocks lean on earlier ones."""
    return [match["code"] for match in PYTHON.finditer(page.read_text()) if not match["marked"]]


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, in one namespace."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for code in snippets(page):
        exec(compile(code, str(page), "exec"), namespace)
