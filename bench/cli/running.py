"""The commands that work: run, resume, preview, report. The rooms are put together here."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bench.analysis import analyse
from bench.cli.progress import Progression
from bench.conduct import Prepared, conduct, prepare, remaining_slots, require_cases, suite_of
from bench.conduct import resume as continue_result
from bench.doctor import examine
from bench.driver import Lab, Launch
from bench.drivers import Chosen, choose_drivers, require_drivers
from bench.errors import IsomarkError, OptionsError, StoreError
from bench.lab import open_lab
from bench.model import Workload
from bench.network import example_lease
from bench.schedule import schedule
from bench.state import state_directory
from bench.store import ResultWriter, done_slots, read_result
from bench.suite import Suite, find_suite, parse_suite
from bench.workload import find_workload
from reports import html, markdown, table
from runtimes.oci.workload_image import build_workload_image


@dataclass(frozen=True)
class Request:
    """What the command line asks of ``run``; ``None`` leaves it to the suite."""

    suite: str
    drivers: Sequence[str] | None
    workloads: Sequence[str] | None
    trials: int | None
    seed: int | None
    out: Path | None

    def resolve(self) -> tuple[Suite, list[Workload]]:
        """Find the suite and its workloads.

        Raises:
            UsageError: one of the names is unknown, or a file is malformed.
        """
        suite = find_suite(self.suite).narrowed(
            drivers=self.drivers, workloads=self.workloads, trials=self.trials, seed=self.seed
        )
        try:
            require_drivers([name for alternatives in suite.drivers for name in alternatives], suite.configurations)
        except OptionsError as error:
            raise suite.refused(error) from error
        return suite, [find_workload(name) for name in suite.workloads]


def run(request: Request) -> bool:
    """Run a suite into a new result folder and report on it; return whether any trial failed."""
    suite, workloads = request.resolve()
    folder = request.out or Path("results") / f"{suite.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if folder.exists() and any(folder.iterdir()):
        raise StoreError(f"{folder} is not empty", hint="choose another --out, or isomark run --resume")
    console = Console(stderr=True)
    with (
        open_lab(state_directory()) as lab,
        _prepared(suite, workloads, lab, console) as prepared,
        ResultWriter.create(folder, prepared.header) as writer,
    ):
        return _conduct_and_report(prepared, writer, set(), lab, console)


def resume(folder: Path) -> bool:
    """Take the trials that a result lacks and report on it again; return whether any trial failed."""
    earlier = read_result(folder)
    parsed = parse_suite(earlier.header.suite_source, str(folder / "header.json"))
    suite = suite_of(earlier.header, parsed)
    workloads = [find_workload(name) for name in suite.workloads]
    console = Console(stderr=True)
    if not remaining_slots(earlier):
        console.print(f"{folder} is complete: all {len(earlier.header.schedule)} trials are there", highlight=False)
        report(folder, folder)
        return False
    with (
        open_lab(state_directory()) as lab,
        _prepared(suite, workloads, lab, console) as prepared,
        ResultWriter.reopen(folder) as writer,
    ):
        earlier = read_result(folder)
        return _conduct_and_report(continue_result(prepared, earlier), writer, done_slots(earlier), lab, console)


def preview(request: Request) -> bool:
    """Print the schedule and what each driver would ask of the host; start nothing."""
    suite, workloads = request.resolve()
    console = Console()
    with open_lab(state_directory()) as lab:
        chosen = _choose(suite, lab)
        try:
            _print_preview(console, suite, workloads, chosen)
        finally:
            chosen.close()
    return False


def report(folder: Path, out: Path) -> None:
    """Write the report files of the result in ``folder`` to ``out`` and print where the first is.

    Raises:
        StoreError: there is no result, or ``out`` cannot be written.
    """
    analysis = analyse(read_result(folder))
    files = {
        "report.html": html.render(analysis),
        "report.md": markdown.render(analysis),
        "samples.csv": table.samples_csv(analysis),
        "summary.csv": table.summary_csv(analysis),
        "steps.csv": table.steps_csv(analysis),
        "footprints.csv": table.footprints_csv(analysis),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write the report to {out}: {error.strerror}", hint="choose another --out") from error
    Console().print(str((out / "report.html").resolve()), highlight=False, soft_wrap=True, markup=False)


def _choose(suite: Suite, lab: Lab) -> Chosen:
    try:
        return choose_drivers(suite.drivers, lab, suite.configurations)
    except OptionsError as error:
        raise suite.refused(error) from error


@contextmanager
def _prepared(suite: Suite, workloads: Sequence[Workload], lab: Lab, console: Console) -> Iterator[Prepared]:
    """Choose drivers and build images, telling what is going on; drivers are closed at the end."""
    with console.status("looking at the host") as status:
        findings = examine(lab.state, None)
        status.update("choosing drivers; the first time KVM is proved by booting a kernel, at most 20 s")
        chosen = _choose(suite, lab)
        try:
            require_cases(suite, chosen)
            for gone in chosen.absent:
                console.print(
                    f"without {gone.name}: {escape(gone.reason)}", style="yellow", highlight=False, soft_wrap=True
                )
            status.update("building the image")
            image = build_workload_image(workloads, lab.state, lab.journal, lambda text: status.update(escape(text)))
            status.update("building each driver's form of the image")
            prepared = prepare(suite, workloads, chosen, image, findings, lab.state)
        except BaseException:
            chosen.close()
            raise
    try:
        yield prepared
    finally:
        chosen.close()


def _conduct_and_report(prepared: Prepared, writer: ResultWriter, done: set[int], lab: Lab, console: Console) -> bool:
    slots = [slot for slot in prepared.header.schedule if slot.index not in done]
    drivers = ", ".join(name for name in prepared.drivers)
    console.print(
        f"{prepared.header.suite_name}: {len(slots)} trials, drivers {drivers}, seed {prepared.header.seed}, "
        f"image {prepared.header.image_digest[:19]}…",
        highlight=False,
        soft_wrap=True,
    )
    try:
        with Progression(console, slots) as progression:
            conduct(prepared, writer, done, lab, progression)
    except (KeyboardInterrupt, IsomarkError):
        go_on = f"finished trials are kept; go on with: isomark run --resume {writer.folder}"
        console.print(escape(go_on), highlight=False, soft_wrap=True)
        raise
    with console.status("writing the report"):
        report(writer.folder, writer.folder)
    if progression.failed:
        console.print(f"{progression.failed} of {len(slots)} trials failed; the report says why", style="red")
    return progression.failed > 0


def _print_preview(console: Console, suite: Suite, workloads: Sequence[Workload], chosen: Chosen) -> None:
    seed = secrets.randbelow(2**32) if suite.seed is None else suite.seed
    console.print(f"# schedule, seed {seed}", highlight=False, markup=False)
    for slot in schedule(suite.cases(chosen.names), suite.trials, seed):
        console.print(f"{slot.index:4}  block {slot.block}  {slot.case}", highlight=False, markup=False)
    for gone in chosen.absent:
        console.print(f"# without {gone.name}: {gone.reason}", highlight=False, markup=False, soft_wrap=True)
    lease = example_lease()
    for driver in chosen.drivers:
        launch = Launch(
            "iso-preview", workloads[0].command, {}, suite.limits, None if driver.kind == "process" else lease
        )
        console.print(f"\n# {driver.name}", highlight=False, markup=False)
        console.print(driver.preview(launch), highlight=False, markup=False, soft_wrap=True)
