"""Which of Autobahn's test cases there are for us, and what is to come of them.

https://github.com/crossbario/autobahn-testsuite
"""

from collections import Counter
from collections.abc import Mapping

# Groups 12 and 13 are of permessage-deflate.
EXCLUDED = ["12.*", "13.*"]
CASES = 301
# What RFC 6455 leaves open: a Close that overtakes a large echo, and the close codes from 5000 on.
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}
# The largest message of the cases is 16 MiB.
MAX_SIZE = 2**25

Verdicts = Mapping[str, tuple[str, str]]
"""For each case: the verdict on the messages, and the verdict on the close."""


def wrong(verdicts: Verdicts) -> list[str]:
    """What is not as it must be."""
    faults = [
        f"{case}: {' and '.join(verdict)}"
        for case, verdict in verdicts.items()
        if not set(verdict) <= ({"OK", "INFORMATIONAL"} if case in INFORMATIONAL else {"OK"})
    ]
    informational = {case for case, verdict in verdicts.items() if "INFORMATIONAL" in verdict}
    if informational != INFORMATIONAL:
        faults.append(f"informational are {sorted(informational)}, expected {sorted(INFORMATIONAL)}")
    if len(verdicts) != CASES:
        faults.append(f"{len(verdicts)} cases, expected {CASES}")
    return faults


def tally(verdicts: Verdicts) -> str:
    """How many cases have which verdict; of a case's two it is the one that is not OK."""
    counts = Counter(next((verdict for verdict in both if verdict != "OK"), "OK") for both in verdicts.values())
    return ", ".join(
        f"{counts[verdict]} {verdict}" for verdict in sorted(counts, key=lambda name: (name != "OK", name))
    )
