"""The commands that look and tell: doctor, drivers, workloads, clean."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.clean import clean as clean_journals
from bench.doctor import examine, examine_driver
from bench.driver import Finding
from bench.drivers import driver_entry_points
from bench.lab import open_lab
from bench.state import journal_directory, state_directory
from bench.suite import find_suite, suite_names
from bench.workload import find_workload, workload_names

MARKS = {"ok": "[green]ok[/]", "note": "[blue]note[/]", "warning": "[yellow]warning[/]", "problem": "[red]problem[/]"}


def doctor() -> int:
    """Print every finding with its remedy; return how many are problems."""
    console = Console()
    with (
        console.status("looking at the host; the KVM proof boots a kernel, at most 20 s"),
        open_lab(state_directory()) as lab,
    ):
        findings = examine(lab.state, lab)
    return _tell(console, findings)


def doctor_engine() -> int:
    """Print the state of each feature that the built-in engine isolates with; return how many are problems."""
    from runtimes.features import findings

    console = Console()
    with console.status("trying what isolation is made of"):
        found = findings(state_directory())
    return _tell(console, found)


def _tell(console: Console, findings: list[Finding]) -> int:
    console.print(_findings_table(findings))
    problems = sum(finding.severity == "problem" for finding in findings)
    console.print(f"{problems} problem{'' if problems == 1 else 's'} in {len(findings)} findings")
    return problems


def drivers() -> None:
    """Print each driver with its engine, or why it cannot run here."""
    console = Console()
    with console.status("trying each driver"), open_lab(state_directory()) as lab:
        findings = [examine_driver(name, lab) for name in sorted(driver_entry_points())]
    console.print(_findings_table(findings))
    for finding in findings:
        for line in finding.facts.get("parity", "").splitlines():
            console.print(f"{finding.subject.removeprefix('driver ')}: {escape(line)}", style="dim")


def workloads() -> None:
    """Print workloads with their metrics, then suites."""
    console = Console()
    table = Table("workload", "what it does", "metrics", box=box.SIMPLE)
    for name in workload_names():
        workload = find_workload(name)
        metrics = "\n".join(metric.name for metric in workload.metrics) or "boot_seconds\nmemory_pss_bytes …"
        table.add_row(name, escape(workload.description.strip()), metrics)
    console.print(table)
    suites = Table("suite", "title", "workloads", "drivers", "trials", box=box.SIMPLE)
    for name in suite_names():
        suite = find_suite(name)
        choices = ", ".join("|".join(alternatives) for alternatives in suite.drivers)
        suites.add_row(name, escape(suite.title), ", ".join(suite.workloads), choices, str(suite.trials))
    console.print(suites)


def clean(gone: Sequence[str]) -> bool:
    """Remove leftovers but at hosts that are ``gone``, and print each; return whether any could not be removed."""
    from runtimes.oci.collect import sweep_dead

    console = Console()
    state = state_directory()
    removals = clean_journals(journal_directory(state), gone)
    sweep_dead(state)
    for removal in removals:
        what = ", ".join(f"{key} {value}" for key, value in removal.entry.what.items())
        outcome = f"[red]not removed: {escape(removal.fault)}[/]" if removal.fault else "removed"
        console.print(f"{removal.entry.kind} {escape(what)}: {outcome}", highlight=False, soft_wrap=True)
    failed = sum(bool(removal.fault) for removal in removals)
    console.print(f"{len(removals) - failed} removed, {failed} not", highlight=False)
    return failed > 0


def _findings_table(findings: list[Finding]) -> Table:
    table = Table("", "subject", "finding", "remedy", box=box.SIMPLE)
    for finding in findings:
        remedy = escape(finding.remedy)
        table.add_row(MARKS[finding.severity], escape(finding.subject), escape(finding.message), remedy)
    return table
