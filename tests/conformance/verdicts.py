"""Which of Autobahn's test cases there are for us, and what is to come of them.

https://github.com/crossbario/autobahn-testsuite
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Part:
    """A part of the cases, which a runner goes through at once.

    Attributes:
        selected: patterns of cases.
        excluded: those of them that are left out.
        count: how many these are.
        informational: those with that verdict.
    """

    selected: tuple[str, ...]
    excluded: tuple[str, ...]
    count: int
    informational: frozenset[str] = frozenset()


# Of RFC 6455. What it leaves open: a Close that overtakes a large echo, and the close codes from 5000 on.
BASE = Part(("*",), ("12.*", "13.*"), 301, frozenset({"7.1.6", "7.13.1", "7.13.2"}))
# Of permessage-deflate: twelve sets of 18 cases, each of a thousand messages. In three sets Autobahn's server wants a
# client without context takeover, and takes only one that offers it.
DEFLATE = Part(("12.*", "13.1.*", "13.3.*", "13.4.*", "13.7.*"), (), 162)
DEFLATE_SINGLE = Part(("13.2.*", "13.5.*", "13.6.*"), (), 54)


def sample(part: Part) -> Part:
    """One case of each set of permessage-deflate, with messages of 1 KiB."""
    selected = [pattern.removesuffix("*") + ("*.4" if pattern == "12.*" else "4") for pattern in part.selected]
    return replace(part, selected=tuple(selected), count=part.count // 18)


# The largest message of the cases is 16 MiB.
MAX_SIZE = 2**25

Verdicts = Mapping[str, tuple[str, str]]
"""For each case: the verdict on the messages, and the verdict on the close."""


def wrong(verdicts: Verdicts, part: Part) -> list[str]:
    """What is not as it must be."""
    faults = [
        f"{case}: {' and '.join(verdict)}"
        for case, verdict in verdicts.items()
        if not set(verdict) <= ({"OK", "INFORMATIONAL"} if case in part.informational else {"OK"})
    ]
    informational = {case for case, verdict in verdicts.items() if "INFORMATIONAL" in verdict}
    if informational != part.informational:
        faults.append(f"informational are {sorted(informational)}, expected {sorted(part.informational)}")
    if len(verdicts) != part.count:
        faults.append(f"{len(verdicts)} cases, expected {part.count}")
    return faults


def tally(verdicts: Verdicts) -> str:
    """How many cases have which verdict; of a case's two it is the one that is not OK."""
    counts = Counter(next((verdict for verdict in both if verdict != "OK"), "OK") for both in verdicts.values())
    return ", ".join(
        f"{counts[verdict]} {verdict}" for verdict in sorted(counts, key=lambda name: (name != "OK", name))
    )
