"""`snapfs anchor`: put, get, list, history, expire, delete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from snapfs.cli import output
from snapfs.cli.moments import MOMENT
from snapfs.cli.options import client_options, json_option, resolve
from snapfs.cli.people import me

if TYPE_CHECKING:
    from snapfs.anchors import Entry
    from snapfs.service.anchor_client import AnchorClient

F = TypeVar("F", bound=Callable[..., Any])


def _at_option(help_text: str) -> Callable[[F], F]:
    return click.option("--at", "at_ns", type=MOMENT, metavar="TIME", help=help_text)


def _statement_options(command: F) -> F:
    """Add what a change says besides its name."""
    options = (
        _at_option("From when it holds.  [default: now]"),
        click.option("-m", "--reason", default="", help="Why; history shows it."),
        click.option("--author", default="", help="Who; history shows it.  [default: USER@HOST]"),
        click.option(
            "--expect",
            "expect_rev",
            type=click.IntRange(min=0),
            metavar="REVISION",
            help="Refuse unless the newest entry has this revision; 0: unless there is none.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def anchor() -> None:
    """Names with a time history: what a name stands for, and stood for.

    \b
    Example:
      snapfs anchor put release/stable snapshot:base -m 'passed the tests'
      snapfs anchor get release/stable --at 2h
    """


@anchor.command()
@client_options
@json_option
@_statement_options
@click.argument("name")
@click.argument("reference", metavar="TYPE:VALUE")
def put(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    at_ns: int | None,
    reason: str,
    author: str,
    expect_rev: int | None,
    name: str,
    reference: str,
) -> None:
    """Let NAME stand for a reference, from now on or from a time on.

    \b
    Example:
      snapfs anchor put -m 'release 2' image/web snapshot:web-2
    """
    from snapfs.anchors import parse_ref

    with connect(address, config_path) as client:
        entry = client.put(
            name,
            parse_ref(reference),
            at_ns=at_ns,
            author=author or me(),
            reason=reason,
            expect_rev=expect_rev,
        )
    _print_change(entry, as_json=as_json)


@anchor.command()
@client_options
@json_option
@_at_option("Ask about this time.  [default: what it stands for last]")
@click.argument("name")
def get(
    address: Path | None, config_path: Path | None, as_json: bool, at_ns: int | None, name: str
) -> None:
    """Print what NAME stands for, or stood for at a time.

    \b
    Example:
      snapfs anchor get image/web --at '2026-11-20 09:00'
    """
    with connect(address, config_path) as client:
        entry = client.get(name, at_ns=at_ns)
    if as_json:
        output.print_json(_shape(entry))
    else:
        click.echo(output.printable(str(entry.ref)))


@anchor.command("list")
@client_options
@json_option
@_at_option("As it was at this time.  [default: as it is]")
@click.option("--deleted", is_flag=True, help="Deleted names too.")
@click.argument("prefix", default="")
def list_(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    at_ns: int | None,
    deleted: bool,
    prefix: str,
) -> None:
    """List names that begin with PREFIX and what they stand for.

    \b
    Example:
      snapfs anchor list image/
    """
    with connect(address, config_path) as client:
        _print_entries(client.walk(prefix, at_ns=at_ns, deleted=deleted), as_json=as_json)


@anchor.command()
@client_options
@json_option
@_at_option("From this time on downwards.  [default: from the newest]")
@click.option("-n", "--count", type=click.IntRange(min=1), help="Show so many.  [default: all]")
@click.option("--repeats", is_flag=True, help="Also what says the same as the entry before it.")
@click.argument("name")
def history(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    at_ns: int | None,
    count: int | None,
    repeats: bool,
    name: str,
) -> None:
    """Show what NAME stood for, since when, by whom and why; the newest first.

    \b
    Example:
      snapfs anchor history image/web
    """
    with connect(address, config_path) as client:
        found = client.history(name, at_ns=at_ns, count=count, repeats=repeats)
        _print_entries(found, as_json=as_json)


@anchor.command()
@client_options
@json_option
@click.option(
    "--before",
    "before_ns",
    type=MOMENT,
    required=True,
    metavar="TIME",
    help="Take away what is older; an age such as 30d will do.",
)
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Newest entries of each name that stay in any case.",
)
@click.argument("prefix", default="")
def expire(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    before_ns: int,
    keep: int,
    prefix: str,
) -> None:
    """Take away old entries of the names that begin with PREFIX.

    What was in force at the limit stays, so no answer about that time or later changes.

    \b
    Example:
      snapfs anchor expire --before 30d --keep 10 image/
    """
    with connect(address, config_path) as client:
        done = client.expire(before_ns, at_least=keep, prefix=prefix)
    if as_json:
        output.print_json({"anchors": done.anchors, "entries": done.entries})
    else:
        click.echo(f"expired {done.entries} entries of {done.anchors} anchors")


@anchor.command()
@client_options
@json_option
@_statement_options
@click.argument("name")
def delete(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    at_ns: int | None,
    reason: str,
    author: str,
    expect_rev: int | None,
    name: str,
) -> None:
    """Let NAME stand for nothing; its past can still be asked.

    \b
    Example:
      snapfs anchor delete -m 'out of service' image/web
    """
    with connect(address, config_path) as client:
        entry = client.delete(
            name, at_ns=at_ns, author=author or me(), reason=reason, expect_rev=expect_rev
        )
    _print_change(entry, as_json=as_json)


@contextmanager
def connect(address: Path | None, config_path: Path | None) -> Iterator[AnchorClient]:
    from snapfs.service.anchor_client import AnchorClient

    settings = resolve(config_path, address=address).config
    with AnchorClient(settings.address, timeout_s=settings.timeouts.call_s) as client:
        yield client


def _shape(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "reference": entry.ref and {"type": entry.ref.type, "value": entry.ref.value},
        "at": output.iso(entry.at_ns),
        "author": entry.author,
        "reason": entry.reason,
        "revision": entry.revision,
    }


def _print_change(entry: Entry, *, as_json: bool) -> None:
    if as_json:
        output.print_json(_shape(entry))
        return
    what = f"stands for {entry.ref}" if entry.ref else "is deleted"
    since = output.when(entry.at_ns)
    click.echo(output.printable(f"{entry.name} {what} since {since} (revision {entry.revision})"))


def _print_entries(entries: Iterable[Entry], *, as_json: bool) -> None:
    if as_json:
        output.print_json([_shape(entry) for entry in entries])
        return
    rows = [
        (
            output.fitted(entry.name),
            output.fitted(str(entry.ref)) if entry.ref else "(deleted)",
            output.when(entry.at_ns),
            str(entry.revision),
            entry.author,
            entry.reason,
        )
        for entry in entries
    ]
    output.table(("NAME", "REFERENCE", "SINCE", "REVISION", "AUTHOR", "REASON"), rows)
