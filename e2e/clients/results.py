"""What a suite's JUnit report says, judged by the list of expected failures."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field

# Node writes these into its reports as they are; XML has no place for them.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")


# How clients show that the server refused or failed, which no lack of skill explains.
REFUSED = re.compile(r"(Error code|status_code|statusCode): [45]\d\d")


@dataclass
class Outcome:
    """How one client did. Names are `file::test`."""

    client: str
    version: str = "?"
    passed: list = field(default_factory=list)
    expected: list = field(default_factory=list)
    # (name, reason)
    skipped: list = field(default_factory=list)
    # (name, what happened)
    failed: list = field(default_factory=list)
    seconds: float = 0.0


def judge(outcome, report, expected):
    """Sorts a report's tests into the outcome. `expected` has a reason by name.

    An expected failure that passes counts as passed. One that fails because the server refused is
    a failure, and so is a listed name that is no test: the list cannot outlive its tests.
    """
    seen = set()
    for name, verdict, text in tests_of(report):
        seen.add(name)
        if verdict == "skipped":
            outcome.skipped.append((name, text))
        elif verdict == "passed":
            outcome.passed.append(name)
        elif name in expected and not REFUSED.search(text):
            outcome.expected.append(name)
        else:
            outcome.failed.append((name, text))
    if not seen:
        outcome.failed.append(("the suite", "it has no tests"))
    for name in sorted(set(expected) - seen):
        outcome.failed.append((name, "listed in expected.py, but there is no such test"))


def tests_of(report):
    """(name, verdict, text) of each test of a JUnit file."""
    text = CONTROL.sub("?", report.read_text(errors="replace"))
    for case in ElementTree.fromstring(text).iter("testcase"):
        verdict, text = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                verdict, text = "failed", child.text or child.get("message") or ""
            elif child.tag == "skipped":
                verdict, text = "skipped", child.get("message") or ""
        yield name_of(case), verdict, text


def name_of(case):
    """`file::test`, from how pytest and Node name a test."""
    if file := case.get("file"):
        return f"{file.rsplit('/', 1)[-1].split('.')[0]}::{case.get('name')}"
    modules = case.get("classname", "").split(".")
    return "::".join([*modules[1:], case.get("name")])


def table(outcomes):
    """The outcomes as lines of a table."""
    rows = [("client", "version", "passed", "expected failures", "skipped", "failed", "seconds")]
    for outcome in outcomes:
        kinds = (outcome.passed, outcome.expected, outcome.skipped, outcome.failed)
        counts = [str(len(kind)) for kind in kinds]
        rows.append((outcome.client, outcome.version, *counts, f"{outcome.seconds:.1f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
