"""The example in docs/metastore.md runs and does what its comments say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from snapfs.store import Index, Reference, Store, Table
from tests.store.kit import REPOSITORY


def test_example_runs(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/metastore.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    code = code.replace('Path("metadata")', "path")
    for expression, name in (("[row.name", "names"), ("tx.has_referrers", "referred")):
        code = code.replace(f"        {expression}", f"        {name} = {expression}")
    scope: dict[str, Any] = {
        "msgspec": msgspec,
        "Index": Index,
        "Reference": Reference,
        "Store": Store,
        "Table": Table,
        "path": tmp_path / "metadata",
    }
    exec(compile(code, "docs/metastore.md", "exec"), scope)
    assert scope["names"] == ["base", "child"]
    assert scope["referred"] is True
