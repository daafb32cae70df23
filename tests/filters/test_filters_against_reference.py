"""Our filters and containerd's, side by side on generated input."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snapfs import filters
from snapfs.model import InvalidArgument

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Ask the filters package of the installed containerd sources."""
    program = tmp_path_factory.mktemp("reference") / "reference"
    source = Path(__file__).with_name("reference.go")
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode"}
    subprocess.run(["go", "build", "-o", program, source], env=environment, check=True)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def ask(texts, fields):
            request = json.dumps({"Filters": texts, "Fields": fields})
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


PIECES = [
    *("name", "labels", "kind", "a", "b1", "_", ".", ",", "==", "!=", "~=", "=", "!", "~"),
    *('"', "/", "|", "\\", "\\n", "\\x41", "\\101", "\\u00e9", '\\"', "\\|", "\\/", "'", "\\777"),
    *(" ", "\t", "\n", "\u00a0", "é", "牛", "[ab]+", "^a", "(", "?", "-", "\u200b", "\0", "\ufffd"),
]
FILTER = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)
PATH = r'(name|labels\.("[a-c/ ]{1,4}"|[a-c]))'
COMPARED = r'( ?(==|!=) ?("[a-c /]*"|[a-c/|]{1,3})|~=(/[abc]\+?/|a|))?'
SENSIBLE = st.from_regex(PATH + COMPARED, fullmatch=True)
TEXTS = st.lists(st.one_of(FILTER, st.lists(SENSIBLE, max_size=3).map(",".join)), max_size=3)
FIELDS = st.dictionaries(
    st.sampled_from(["name", "labels.a", "labels.b", "labels.a/b", "labels. ", "kind", "a"]),
    st.text("abc/| é牛", max_size=4),
)


@settings(max_examples=1000, deadline=None)
@given(TEXTS, FIELDS)
@example(["name==a/b|c"], {"name": "a/b|c"})
@example(["name== 'x'"], {"name": "'x'"})
def test_generated_filters_mean_the_same_to_both(reference, texts, fields):
    said = reference(texts, fields)
    try:
        chosen = filters.parse(texts)
    except InvalidArgument:
        assert said["Refused"]
        return
    assert not said["Refused"]
    assert chosen.matches(lambda path: fields.get(".".join(path))) == said["Matches"]
