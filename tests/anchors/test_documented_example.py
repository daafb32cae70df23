"""The example in docs/anchors.md runs and does what its comments say."""

import re
from pathlib import Path

from snapfs.store import Store

PAGE = Path(__file__).parents[2] / "docs" / "anchors.md"


def test_example_runs(tmp_path):
    code = PAGE.read_text().split("```python\n")[1].split("```")[0]
    code = code.replace('Path("metadata")', "path")
    claims = re.findall(r"^    (\S.*?)  +# (.*)$", code, re.MULTILINE)
    for expression, _ in claims:
        code = code.replace(f"    {expression}  ", f"    said.append({expression})  ")
    scope = {"Store": Store, "path": tmp_path / "metadata", "said": []}
    exec(compile(code, str(PAGE), "exec"), scope)
    said = [", ".join(each) if isinstance(each, list) else each for each in scope["said"]]
    assert said == [claim for _, claim in claims]
    assert len(said) == 4
