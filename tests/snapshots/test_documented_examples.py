"""The examples in the documentation run."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def examples(page):
    return re.findall(
        r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("source", examples("snapshots.md"))
def test_example_of_the_metastore_page_runs(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "docs/snapshots.md", "exec"), {})
    assert "cannot remove snapshot 'base': it has children" in capsys.readouterr().out
