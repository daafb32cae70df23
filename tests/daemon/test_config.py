"""Settings: what is in force, where it came from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs import config
from snapfs.model import InvalidArgument, NotFound


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_defaults_serve_from_var_lib_and_run() -> None:
    got = config.resolve(environ={"SNAPFS_CONFIG": ""}).config
    assert (got.root, got.state) == (Path("/var/lib/snapfs"), Path("/run/snapfs"))
    assert got.address == Path("/run/snapfs/snapfs.sock")


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'root = "/file"\nstate = "/file"\nlog_level = "debug"\n[timeouts]\nstop_s = 3\n'
    )
    got = config.resolve(
        {"root": Path("/flag"), "unpack": None},
        path=path,
        environ={"SNAPFS_ROOT": "/env", "SNAPFS_STATE": "/env"},
    )
    assert (got.config.root, got.config.state) == (Path("/flag"), Path("/env"))
    assert (got.config.log_level, got.config.unpack) == ("debug", "overlay")
    assert got.config.timeouts.stop_s == 3
    assert got.origins["root"] == "flag"
    assert got.origins["state"] == "environment SNAPFS_STATE"
    assert got.origins["timeouts.stop_s"] == f"file {path}"
    assert got.origins["unpack"] == "default"


def test_the_socket_follows_the_state_directory_unless_set(tmp_path: Path) -> None:
    path = write(tmp_path, 'state = "/s"\n')
    assert config.resolve(path=path, environ={}).config.address == Path("/s/snapfs.sock")
    flags = {"address": Path("/a.sock")}
    assert config.resolve(flags, path=path, environ={}).config.address == Path("/a.sock")


def test_environment_values_become_numbers() -> None:
    got = config.resolve(environ={"SNAPFS_SERVICE_MAX_WORKERS": "7", "SNAPFS_TIMEOUTS_CALL_S": "2"})
    assert got.config.service.max_workers == 7
    assert got.config.timeouts.call_s == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('rooot = "/x"', "rooot: unknown key; did you mean root?"),
        ("[timeouts]\ndrain = 1", "timeouts.drain: unknown key; did you mean timeouts.drain_s?"),
        ("max_workers = 4", "max_workers: unknown key; did you mean service.max_workers?"),
        ("qqqq = 1", "qqqq: unknown key; known keys are root, state"),
        ('[service]\nmax_workers = "4"', "service.max_workers: expected `int`, got `str`"),
        ("[service]\nmax_workers = 0", "service.max_workers: expected `int` >= 1"),
        ("root = 3", "root: expected a path, got `int`"),
        ("root = true", "root: expected a path, got a boolean"),
        ('root = "var/lib"', "root: 'var/lib' is not an absolute path"),
        ("timeouts = 3", "timeouts: expected a table, got `int`"),
        ('unpack = "zip"', "unpack: invalid enum value 'zip'; use one of overlay, fuse"),
        ("[timeouts]\nstop_s = -1", "timeouts.stop_s: expected `float` > 0"),
        ("[timeouts]\nwatchdog_s = 0.5", "timeouts.watchdog_s: expected `float` >= 1"),
        ('[quota]\nbytes = "much"', "quota.bytes: 'much' is no size; write it as 10GiB"),
        ('[quota]\nbytes = "-1"', "quota.bytes: '-1' is no size"),
        ("[quota]\nbytes = -1", "quota.bytes: expected `int` >= 0"),
        ('[diff]\napply = "yes"', "diff.apply: 'yes' is neither true nor false"),
        ("root = ", "not valid TOML"),
        ("snapshotters = 3", "snapshotters: expected a table, got `int`"),
        ("[snapshotters]\nx = 3", "snapshotters.x: expected a table, got `int`"),
        (
            "[snapshotters.x]\nsokket = '/s'",
            "snapshotters.x.sokket: unknown key; did you mean socket?",
        ),
        ("[snapshotters.x]\nqqq = '/s'", "snapshotters.x.qqq: unknown key; known keys are socket,"),
        ("[snapshotters.x]\nsnapshotter = 'y'", "snapshotters.x: no socket is named"),
        ("[snapshotters.x]\nsocket = 's'", "snapshotters.x.socket: 's' is not an absolute path"),
        ("[snapshotters.x]\nsocket = 3", "snapshotters.x.socket: expected a word, got 3"),
        ("[snapshotters.'a/b']\nsocket = '/s'", "snapshotters.a/b: a name is letters and digits"),
        ("[snapshotters.snapfs]\nsocket = '/s'", "snapshotters.snapfs: a name is"),
        ("[snapshoters.x]\nsocket = '/s'", "snapshoters: unknown key; did you mean snapshotters?"),
    ],
)
def test_a_bad_file_is_refused_naming_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidArgument) as caught:
        config.resolve(path=path, environ={})
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("10GiB", 10 << 30), ("1.5m", 3 << 19), ("1048576", 1 << 20), ("0", 0)],
)
def test_a_quota_is_a_size_as_people_write_it(tmp_path: Path, text: str, size_bytes: int) -> None:
    path = write(tmp_path, f"[quota]\nbytes = '{text}'\n")
    assert config.resolve(path=path, environ={}).config.quota.bytes == size_bytes
    environ = {"SNAPFS_CONFIG": "", "SNAPFS_QUOTA_BYTES": text}
    assert config.resolve(environ=environ).config.quota.bytes == size_bytes


def test_a_boolean_of_the_environment_is_true_or_false() -> None:
    for text, value in (("true", True), ("false", False)):
        environ = {"SNAPFS_CONFIG": "", "SNAPFS_DIFF_APPLY": text}
        assert config.resolve(environ=environ).config.diff.apply is value
    with pytest.raises(InvalidArgument, match="'maybe' is neither true nor false"):
        config.resolve(environ={"SNAPFS_DIFF_APPLY": "maybe"})


def test_a_bad_environment_value_names_the_variable() -> None:
    with pytest.raises(InvalidArgument, match=r"_WORKERS: service\.max_workers: "):
        config.resolve(environ={"SNAPFS_SERVICE_MAX_WORKERS": "many"})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SNAPFS_ROTT", "did you mean SNAPFS_ROOT"),
        ("SNAPFS_LANES_VIEWS", "did you mean SNAPFS_LANES_VIEW"),
        ("SNAPFS_CONFIGG", "did you mean SNAPFS_CONFIG"),
        ("SNAPFS_QQQQQQQQQQQQQQQQQQ", "unset it"),
    ],
)
def test_an_environment_variable_that_sets_nothing_is_refused(name: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=f"environment {name}: .*{words}"):
        config.resolve(environ={name: ""})


def test_other_variables_are_nobodys_business() -> None:
    config.resolve(environ={"_SNAPFS_COMPLETE": "bash_source", "SNAP": "x"})


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such configuration file"):
        config.resolve(path=tmp_path / "none.toml", environ={})
    with pytest.raises(NotFound, match="no such configuration file"):
        config.resolve(environ={"SNAPFS_CONFIG": str(tmp_path / "none.toml")})


def test_a_socket_path_beyond_the_kernels_limit_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="too long for a unix socket"):
        config.resolve({"state": Path("/" + "x" * 120)}, environ={})


def test_snapshotters_of_others_have_a_table_each(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "[snapshotters.overlayfs]\nsocket = '/run/containerd/containerd.sock'\n"
        "[snapshotters.other]\nsocket = '/other.sock'\nsnapshotter = 'snapfs'\nnamespace = 'n'\n",
    )
    got = config.resolve(path=path, environ={})
    assert got.config.snapshotters == {
        "overlayfs": config.Registered(socket=Path("/run/containerd/containerd.sock")),
        "other": config.Registered(socket=Path("/other.sock"), snapshotter="snapfs", namespace="n"),
    }
    shown = {key: (value, origin) for key, value, origin in got.rows()}
    assert shown["snapshotters.other.socket"] == ("/other.sock", f"file {path}")
    for flags, words in (
        ({"address": Path("/other.sock")}, "that is this service itself"),
        ({"address": Path("/" + "x" * 120)}, "too long"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            config.resolve(flags, path=path, environ={})


def test_every_key_is_listed_with_its_origin() -> None:
    rows = list(config.resolve(environ={}).rows())
    assert [key for key, _value, _origin in rows] == list(config.KEYS)
    assert {origin for _key, _value, origin in rows} == {"default"}


@given(st.text(max_size=30))
def test_any_unknown_key_is_refused_without_a_crash(key: str) -> None:
    if key in config.KEYS or key in {known.partition(".")[0] for known in config.KEYS}:
        return
    with pytest.raises(InvalidArgument, match="unknown key"):
        list(config._flatten({key: 1}, "file"))
