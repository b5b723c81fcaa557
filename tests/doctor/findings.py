"""What tests ask of findings."""

from dualrate.doctor.finding import Finding


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def only(findings, level: str) -> Finding:
    """The one finding that is not ok; it says what to do."""
    (found,) = [finding for finding in findings if finding.level != "ok"]
    assert found.level == level, found
    assert found.remedy
    return found
