"""The metastore against a dictionary: any sequence of calls gives the same answers and refusals."""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from snapfs.model import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    Kind,
    NotFound,
    SnapfsError,
    Usage,
)
from snapfs.snapshots import MetaStore

LONG = "l" * 500
NAMES = st.sampled_from(["a", "b", "ab", "é", LONG + "1", LONG + "2", "x/y z"])
PARENTS = st.one_of(st.just(""), NAMES)
LABELS = st.dictionaries(st.sampled_from(["k", "a.b", "c/d"]), st.sampled_from(["", "1", "2"]))
PATHS = st.lists(st.sampled_from(["labels", "labels.k", "labels.a.b", "name"]), max_size=2)
KINDS = st.sampled_from([Kind.ACTIVE, Kind.VIEW])
USAGES = st.builds(Usage, st.integers(0, 1 << 50), st.integers(0, 1 << 30))


@dataclass
class Entry:
    id: int
    kind: Kind
    parent: str
    labels: dict[str, str]
    usage: Usage = field(default_factory=Usage)


class Model:
    """What the reference does, on a dictionary."""

    def __init__(self):
        self.entries: dict[str, Entry] = {}
        self.last_id = 0

    def create(self, kind, key, parent, labels):
        if parent and parent not in self.entries:
            raise NotFound
        if parent and self.entries[parent].kind is not Kind.COMMITTED:
            raise InvalidArgument
        if key in self.entries:
            raise AlreadyExists
        self.last_id += 1
        self.entries[key] = Entry(self.last_id, kind, parent, kept(labels))

    def commit(self, key, name, usage, labels, parent):
        if name in self.entries:
            raise AlreadyExists
        if key not in self.entries:
            raise NotFound
        entry = self.entries[key]
        if entry.kind is not Kind.ACTIVE:
            raise FailedPrecondition
        if parent and entry.parent and parent != entry.parent:
            raise InvalidArgument
        if parent and not entry.parent:
            if parent not in self.entries:
                raise NotFound
            if self.entries[parent].kind is not Kind.COMMITTED:
                raise FailedPrecondition
        del self.entries[key]
        self.entries[name] = Entry(
            entry.id, Kind.COMMITTED, entry.parent or parent, kept(labels), usage
        )

    def update(self, key, labels, paths):
        if key not in self.entries:
            raise NotFound
        changed = dict(self.entries[key].labels)
        for path in paths or ["labels"]:
            if path == "name":
                raise InvalidArgument
            if path == "labels":
                changed = dict(labels)
            else:
                label = path.removeprefix("labels.")
                changed[label] = labels.get(label, "")
        self.entries[key].labels = kept(changed)

    def remove(self, key):
        if key not in self.entries:
            raise NotFound
        if any(entry.parent == key for entry in self.entries.values()):
            raise FailedPrecondition
        del self.entries[key]

    def chain(self, name):
        chain = []
        while parent := self.entries[name].parent:
            chain.append(self.entries[parent].id)
            name = parent
        return tuple(chain)


def kept(labels):
    return {key: value for key, value in labels.items() if value}


def refusal(operation, *arguments):
    """Return the type of the error that the operation raises, None when it succeeds."""
    try:
        operation(*arguments)
    except SnapfsError as error:
        return type(error)
    return None


class MetaStoreMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="snapfs-metastore-"))
        self.metastore = MetaStore(self.path / "metadata")
        self.model = Model()

    def both(self, operation, *arguments):
        """Do the same to both; they agree on success, or on the type of the refusal."""
        expected = refusal(getattr(self.model, operation), *arguments)
        assert refusal(getattr(self.metastore, operation), *arguments) is expected

    @rule(kind=KINDS, key=NAMES, parent=PARENTS, labels=LABELS)
    def create(self, kind, key, parent, labels):
        self.both("create", kind, key, parent, labels)

    @rule(key=NAMES, name=NAMES, usage=USAGES, labels=LABELS, parent=PARENTS)
    def commit(self, key, name, usage, labels, parent):
        self.both("commit", key, name, usage, labels, parent)

    @rule(key=NAMES, name=NAMES)
    def create_and_commit(self, key, name):
        self.both("create", Kind.ACTIVE, key, "", {})
        self.both("commit", key, name, Usage(1, 1), {}, "")

    @rule(key=NAMES, labels=LABELS, paths=PATHS)
    def update(self, key, labels, paths):
        self.both("update", key, labels, paths)

    @rule(key=NAMES)
    def remove(self, key):
        self.both("remove", key)

    @rule()
    def reopen(self):
        self.metastore.close()
        self.metastore = MetaStore(self.path / "metadata")

    @rule(kind=st.sampled_from(list(Kind)), parent=PARENTS)
    def walk_filtered(self, kind, parent):
        wanted = [f'kind=={kind.word},parent=="{parent}"', "labels.k==1"]
        assert {found.name for found in self.metastore.walk(wanted)} == {
            name
            for name, entry in self.model.entries.items()
            if (entry.kind, entry.parent) == (kind, parent) or entry.labels.get("k") == "1"
        }

    @invariant()
    def every_snapshot_is_as_the_model_has_it(self):
        found = {
            snapshot.name: (
                Entry(
                    snapshot.id,
                    snapshot.kind,
                    snapshot.parent,
                    dict(snapshot.labels),
                    self.metastore.usage(snapshot.name),
                ),
                snapshot.parent_ids,
            )
            for snapshot in self.metastore.walk()
        }
        expected = {
            name: (entry, self.model.chain(name)) for name, entry in self.model.entries.items()
        }
        assert found == expected
        assert self.metastore.id_map() == {entry.id: name for name, (entry, _) in expected.items()}

    def teardown(self):
        try:
            assert self.metastore.store.check() == []
        finally:
            self.metastore.close()
            shutil.rmtree(self.path)


TestMetaStoreMachine = MetaStoreMachine.TestCase
TestMetaStoreMachine.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
