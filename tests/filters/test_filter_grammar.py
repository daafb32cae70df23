"""The grammar and meaning of containerd's filters, case by case and by fuzzing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs import filters
from snapfs.filters import Operator, Selector
from snapfs.model import InvalidArgument

OBJECTS = [
    {"name": "foo", "labels.foo": "true"},
    {"name": "bar"},
    {"name": "foo", "labels.foo": "present", "labels.more complex label": "present"},
    {"name": "bar", "labels.bar": "true"},
    {"name": "fooer", 'labels.more complex label with \\ and "': "present"},
    {"name": "fooer", 'labels.more complex label with \\ and ".post': "present"},
    {"name": "baz", "other": "too complex, yo"},
    {"name": "bazo", "other": "abc"},
    {"name": "compound", "labels.foo": "omg_asdf.asdf-qwer"},
]


def selected(*texts):
    chosen = filters.parse(texts)
    return [
        number
        for number, fields in enumerate(OBJECTS)
        if chosen.matches(lambda path, fields=fields: fields.get(".".join(path)))
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("name", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("labels.foo", [0, 2, 8]),
        ("labels.foo,name", [0, 2, 8]),
        ("labels.foo==true", [0]),
        ("labels.foo==omg_asdf.asdf-qwer", [8]),
        ("name==bar", [1, 3]),
        ("name!=bar", [0, 2, 4, 5, 6, 7, 8]),
        ("name==bar,labels.bar", [3]),
        ('other=="too complex, yo"', [6]),
        ("other~=[abc]+,name!=foo", [6, 7]),
        ("other~=/[abc]+/,name!=foo", [6, 7]),
        ("other~=|[abc]{1,2}|,name!=foo", [6, 7]),
        ('other~=/[abc]{0,1}"\\//,name!=foo', []),
        ("name==bar,labels.bar==wrong", []),
        ('name==foo,labels."more complex label"', [2]),
        (r'labels."more complex label with \\ and \""==present', [4]),
        (r'labels."more complex label with \\ and \"".post==present', [5]),
        ("labels.absent!=x", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ('labels.absent!=""', []),
        ("name == foo", [0, 2]),
        ("other~=(unbalanced", []),
        ("name~=(?=foo)", []),
        (r'name~="(f)oo\\1"', []),
    ],
)
def test_filter_selects_the_objects_the_reference_selects(text, expected):
    assert selected(text) == expected


def test_no_filter_selects_everything_and_several_are_alternatives():
    assert selected() == list(range(len(OBJECTS)))
    assert selected("name==baz", "name==bazo") == [6, 7]


def test_field_path_and_value_keep_what_their_quotes_hold():
    (selector,) = filters.parse([r'labels."a/b.c"."\x41\u00e9\101"~=|b\|c|']).alternatives[0]
    assert selector == Selector(("labels", "a/b.c", "AéA"), Operator.MATCHES, "b|c")


@pytest.mark.parametrize(
    ("text", "shown", "why"),
    [
        ("name==foo,", "[name==foo,]", "expected a field"),
        ("labels.", "[labels.]", "expected a field"),
        ("image~=,id?=?fbaq", "[image~= >|,|< id?=?fbaq]", "expected a value"),
        ("labels.ns/key==value", "[labels.ns >|/|< key==value]", "expected an operator"),
        ('labels."key', '[labels. >|"|< key]', "not terminated"),
        ('labels."a\nb"', "labels.", "not terminated"),
        ("labels.key~=/value", "[labels.key~= >|/|< value]", "not terminated"),
        ("labels.key==/value/", ">|/|<", "only double quotes"),
        ("labels.|foo|==x", "[labels. >|||< foo|==x]", "only double quotes"),
        ('labels.?"x"', ">|?|<", "expected a field"),
        ("name=foo", ">|=|<", "expected an operator"),
        ("name===foo", ">|=|<", "expected an operator"),
        ("name==", "[name==]", "expected a value"),
        ("name==foo bar", ">| |<", "unexpected input"),
        ("name ", "[name ]", "expected an operator"),
        ("a\0b", ">|\0|<", "unexpected character"),
        (r'labels."\g"', ">|\\|<", "illegal escape"),
        (r'labels."\xaz"', ">|\\|<", "illegal escape"),
        (r'labels."\|"', ">|\\|<", "illegal escape"),
        (r'labels."\777"', ">|\\|<", "octal"),
        (r'labels."\UFFFFFFFF"', ">|\\|<", "not a character"),
    ],
)
def test_bad_filter_is_refused_and_the_place_is_shown(text, shown, why):
    with pytest.raises(InvalidArgument, match=re.escape(why)) as refused:
        filters.parse(["name", text])
    assert shown in str(refused.value)


def quoted(text):
    return '"' + "".join(f"\\U{ord(char):08x}" for char in text) + '"'


VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.lists(VALUES, min_size=1, max_size=4), st.sampled_from(list(Operator)[1:]), VALUES)
def test_quoting_round_trips_any_text(path, operator, value):
    text = ".".join(quoted(part) for part in path) + operator.value + quoted(value)
    assert filters.parse([text]).alternatives == ((Selector(tuple(path), operator, value),),)


@given(st.text(st.sampled_from(list('ab1_.,"/|\\=!~ \n\0x7é[(*+?')), max_size=24))
def test_any_text_is_parsed_or_refused_and_matching_never_fails(text):
    try:
        chosen = filters.parse([text])
    except InvalidArgument:
        return
    chosen.matches(lambda _path: "ab")
    chosen.matches(lambda _path: None)


def test_no_expression_takes_more_than_linear_time() -> None:
    """Python's own engine would need longer than the universe for this one."""
    names = filters.parse(['name~="^(a+)+$"'])
    assert not names.matches({("name",): "a" * 5000 + "b"}.get)
