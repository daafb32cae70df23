"""Where content-defined chunks end (in C)."""

def cut(
    data: bytes | bytearray | memoryview,
    gear: bytes,
    least: int,
    wanted: int,
    most: int,
    strict: int,
    loose: int,
    final: bool,
    /,
) -> list[int]: ...
