"""The spans of a request as a tree for people: what `headgate trace REQUEST_ID` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from observability.span_store import REQUEST_ID, Scalar, Span

__all__ = ["render_tree"]

# Said by the heading, or the same for every request.
_HIDDEN = frozenset({REQUEST_ID, "gen_ai.provider.name", "url.scheme", "network.protocol.version"})
_LONGEST_VALUE = 80
_GAP = "  "


def render_tree(spans: Sequence[Span], linked: Sequence[Span] = ()) -> str:
    """A line a span (name, process, offset from the start of the first, duration, attributes), a line an event below
    it.

    Children are in the order of their starts. A span whose parent is not among `spans` is a root: that of the gateway
    is, when the caller began the trace. `linked` are shown below the spans that link to them: steps of a scheduler.
    Empty for no spans.
    """
    if not spans:
        return ""
    start = min(span.start_unix_ns for span in spans)
    end = max(span.end_unix_ns for span in spans)
    targets = {f"{span.trace_id}-{span.span_id}": span for span in linked}
    rows = [tuple(map(_plain, row)) for trunk, span in _walk(spans) for row in _rows(trunk, span, start, targets)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    # That of a choice begins with that of its request.
    request = min((span.request_id for span in spans if span.request_id), key=len, default="")
    heading = f"request {request}{_GAP}trace {spans[0].trace_id}{_GAP}{(end - start) / 1e6:.1f} ms"
    lines = [
        _GAP.join(
            (row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2].rjust(widths[2]), row[3].rjust(widths[3]), row[4])
        )
        for row in rows
    ]
    return "\n".join([_plain(heading), *(line.rstrip() for line in lines)])


def _plain(text: str) -> str:
    """Control characters as escapes: whoever sends spans would else steer the terminal that they are read on."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(one: str) -> str:
    return one if one.isprintable() else one.encode("unicode_escape").decode()


def _walk(spans: Sequence[Span]) -> Iterator[tuple[tuple[str, str], Span]]:
    """Depth first: the span, with the branch drawn before its name and the one drawn before the lines below it."""
    known = {span.span_id for span in spans}
    children: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: (span.start_unix_ns, span.end_unix_ns)):
        children.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    seen: set[str] = set()

    def below(parent: str, stem: str) -> Iterator[tuple[tuple[str, str], Span]]:
        siblings = [span for span in children.get(parent, []) if span.span_id not in seen]
        for span in siblings:
            seen.add(span.span_id)
            last = span is siblings[-1]
            branch, deeper = (
                ("", "") if not parent else (stem + ("└─ " if last else "├─ "), stem + ("   " if last else "│  "))
            )
            has_children = span.span_id in children
            yield (branch, deeper + ("│  " if has_children else "   ")), span
            yield from below(span.span_id, deeper)

    yield from below("", "")


def _rows(
    trunk: tuple[str, str], span: Span, start: int, targets: Mapping[str, Span]
) -> Iterator[tuple[str, str, str, str, str]]:
    branch, stem = trunk
    details = _attributes(span.attributes)
    if span.error:
        details = f"ERROR: {span.error}{_GAP}{details}"
    found = [targets[link] for link in span.links if link in targets]
    if len(found) < len(span.links):
        details += f"{_GAP if details else ''}links={len(span.links)}"
    process = f"{span.role}/{span.instance}"
    yield branch + span.name, process, _offset(span.start_unix_ns, start), f"{span.duration_ms:.1f} ms", details
    for event in span.events:
        yield f"{stem}· {event.name}", "", _offset(event.unix_ns, start), "", _attributes(event.attributes)
    for one in sorted(found, key=lambda one: one.start_unix_ns):
        duration = f"{one.duration_ms:.1f} ms"
        yield f"{stem}⇢ {one.name}", "", _offset(one.start_unix_ns, start), duration, _attributes(one.attributes)


def _offset(unix_ns: int, start: int) -> str:
    return f"{(unix_ns - start) / 1e6:+.1f}"


def _attributes(attributes: dict[str, Scalar | list[Scalar]]) -> str:
    return " ".join(
        f"{name.removeprefix('headgate.')}={_value(value)}" for name, value in attributes.items() if name not in _HIDDEN
    )


def _value(value: Scalar | list[Scalar]) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(_value, value))
    text = _number(value) if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
