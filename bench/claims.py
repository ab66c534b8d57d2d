"""What a claim is, and the rules that decide it: reproduced, refuted or undefined.

Most published figures name no base, no benchmark and no method. So a claim is tested under every
reading a careful reader could give it, and each reading is a ``Definition``. The table of claims that
isomark checks is in ``bench.published``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

from bench.observed import Figure, Observed
from bench.result import DriverRecord
from bench.stats import CONFIDENCE, best_coverage

Side = Literal["vm", "container", "relation"]
SIDES: Final[tuple[Side, ...]] = ("vm", "container", "relation")
Emulation = Literal["harmless", "adds", "invalid"]
"""What an emulated CPU does to a virtual server's figure: nothing, only enlarge it, or void it."""
Scale = Literal["bytes", "percent", "seconds", "times"]


class Verdict(enum.StrEnum):
    """What a result says of a claim under one definition."""

    REPRODUCED = "reproduced"
    REFUTED = "refuted"
    UNDEFINED = "undefined"


@dataclass(frozen=True)
class Published:
    """A published cell: its words, and the figures from ``low`` up to ``high`` that bear it out."""

    text: str
    low: float
    high: float


@dataclass(frozen=True)
class Subject:
    """Whom a claim is checked with: the drivers that stand for each column, ``None`` if none took part."""

    observed: Observed
    vm: DriverRecord | None
    container: DriverRecord | None


class Measure(Protocol):
    """How a definition gets its figure."""

    def __call__(self, observed: Observed, driver: str, other: str | None = None, /) -> Figure:
        """Return the figure of ``driver``, or its quotient by that of ``other``."""


@dataclass(frozen=True)
class Definition:
    """One reading of a claim, tested on ``sides`` of the table.

    ``undecidable`` says why no figure could decide it, though ``measure`` may still give one to show. ``emulation`` is
    what an emulated CPU does to this reading, unless it is what the claim says. ``driver`` is the only one that is
    meant on the virtual server's side, where not any will do.
    """

    name: str
    title: str
    text: str
    measure: Measure | None
    undecidable: str = ""
    sides: tuple[Side, ...] = SIDES
    emulation: Emulation | None = None
    driver: str = ""


@dataclass(frozen=True)
class Claim:
    """One row of a published table. ``below`` and ``above`` name a figure outside the claim.

    ``scale`` is how its two columns are written; their relation is always a quotient.
    """

    name: str
    title: str
    scale: Scale
    published: Mapping[Side, Published]
    below: str
    above: str
    emulation: Emulation
    definitions: tuple[Definition, ...]


@dataclass(frozen=True)
class Judgement:
    """A verdict, a word or two on it, and the full reason where the figure alone does not say it."""

    verdict: Verdict
    brief: str
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """A cell of the table under one definition: the published words, our figure, the verdict."""

    side: Side
    driver: str
    emulated: bool
    scale: Scale
    published: str
    figure: Figure
    judgement: Judgement


@dataclass(frozen=True)
class Reading:
    """A definition with its checks in the order of ``SIDES``; ``None`` where it does not apply."""

    definition: Definition
    checks: tuple[Check | None, ...]


@dataclass(frozen=True)
class CheckedClaim:
    """A row of the table with all its readings."""

    claim: Claim
    readings: tuple[Reading, ...]


def check_claims(claims: Sequence[Claim], subject: Subject) -> tuple[CheckedClaim, ...]:
    """Return each claim with the verdict on each of its cells under each of its definitions."""
    return tuple(
        CheckedClaim(claim, tuple(_reading(claim, definition, subject) for definition in claim.definitions))
        for claim in claims
    )


def judge(figure: Figure, published: Published, below: str, above: str) -> Judgement:
    """Return the verdict on ``published``: the whole 95 % interval inside it, outside it, or neither."""
    estimate = figure.estimate
    if estimate is None:
        return Judgement(Verdict.UNDEFINED, "not measured", figure.missing)
    if estimate.low is None or estimate.high is None:
        return Judgement(
            Verdict.UNDEFINED,
            "one trial",
            "A single trial has no confidence interval; take more with --trials 10.",
        )
    doubt = _doubt(estimate.trials)
    if estimate.high < published.low:
        return Judgement(Verdict.REFUTED, below, doubt)
    if estimate.low >= published.high:
        return Judgement(Verdict.REFUTED, above, doubt)
    if published.low <= estimate.low and estimate.high < published.high:
        return Judgement(Verdict.REPRODUCED, "", doubt)
    return Judgement(
        Verdict.UNDEFINED,
        "interval crosses the limit",
        "The 95 % confidence interval lies on both sides of the claim's limit; more trials would narrow it.",
    )


def _doubt(trials: int) -> str:
    """Say what an interval over so few trials is worth; nothing for a counted quantity or for enough of them."""
    coverage = best_coverage(trials)
    if trials == 0 or coverage == CONFIDENCE:
        return ""
    worth = f"{100 * coverage:.3g} %"
    return f"The verdict rests on {trials} trials, whose interval holds the truth in at most {worth} of cases."


def within_emulation(judgement: Judgement, below: str, emulation: Emulation) -> Judgement:
    """Return what is left of a verdict when the virtual server ran on an emulated CPU."""
    if emulation == "harmless" or judgement.verdict is Verdict.UNDEFINED:
        return judgement
    if emulation == "invalid":
        return Judgement(
            Verdict.UNDEFINED,
            "emulated CPU",
            "The virtual server ran on a CPU emulated in software. Its speed says nothing about a virtual server on "
            "hardware, so it neither reproduces nor refutes the claim.",
        )
    if judgement.verdict is Verdict.REFUTED and judgement.brief == below:
        lower = "Emulation adds the memory of its translation cache to the figure; on hardware it would be lower still."
        return Judgement(Verdict.REFUTED, below, f"{lower} {judgement.reason}".rstrip())
    return Judgement(
        Verdict.UNDEFINED,
        "emulated CPU",
        "The figure includes the emulator's translation cache, which a virtual server on hardware does not have.",
    )


def _reading(claim: Claim, definition: Definition, subject: Subject) -> Reading:
    if definition.driver:
        subject = replace(subject, vm=subject.observed.drivers.get(definition.driver))
    checks = (_check(claim, definition, side, subject) if side in definition.sides else None for side in SIDES)
    return Reading(definition, tuple(checks))


def _check(claim: Claim, definition: Definition, side: Side, subject: Subject) -> Check:
    published = claim.published[side]
    mine = subject.container if side == "container" else subject.vm
    emulated = side != "container" and mine is not None and mine.emulated
    figure = _figure(definition, side, subject)
    below, above = ("a smaller ratio", "a larger ratio") if side == "relation" else (claim.below, claim.above)
    if definition.undecidable:
        judgement = Judgement(Verdict.UNDEFINED, "not decidable", definition.undecidable)
    else:
        judgement = judge(figure, published, below, above)
        if emulated:
            judgement = within_emulation(judgement, below, definition.emulation or claim.emulation)
    scale: Scale = "times" if side == "relation" else claim.scale
    return Check(side, mine.name if mine else "", emulated, scale, published.text, figure, judgement)


def _figure(definition: Definition, side: Side, subject: Subject) -> Figure:
    if definition.measure is None:
        return Figure(None, definition.undecidable)
    if subject.vm is None and side != "container":
        who = f"no {definition.driver}" if definition.driver else "no virtual server"
        return Figure(None, f"{who} took part")
    if subject.container is None and side != "vm":
        return Figure(None, "no container took part")
    drivers = {"vm": (subject.vm,), "container": (subject.container,), "relation": (subject.vm, subject.container)}[
        side
    ]
    figure = definition.measure(subject.observed, *(driver.name for driver in drivers if driver is not None))
    return replace(figure, detail=definition.driver) if definition.driver and figure.estimate else figure
