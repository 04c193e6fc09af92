"""`liverseg study`: many trainings, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from liverseg.errors import InputError

app = typer.Typer(
    help="Compare networks, losses and postprocessing in one command.", no_args_is_help=True
)

StudyFile = Annotated[
    Path, typer.Argument(help="A YAML file, or one as shipped, such as paper_a.yaml or quick.yaml.")
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for everything written; by default studies_out/NAME.")
]
Bundles = Annotated[Path, typer.Option(help="Folder with the bundles.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Trainings at once; by default one for each GPU, or for each CPU core."
    ),
]


@app.command()
def run(
    study: StudyFile,
    out: Out = None,
    workers: Workers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trainings with their commands only.")
    ] = False,
    bundles: Bundles = Path("bundles"),
) -> None:
    """Train and evaluate all that the study's tables need, then write tables, plots and index.html.

    What is done is not done again: after any stop, give the same command.

    Examples: liverseg study run quick.yaml; liverseg study run paper_a.yaml --out results/paper_a
    """
    from rich.console import Console

    from liverseg.workbench.study.folder import StudyFolder
    from liverseg.workbench.study.length import compare_lengths, length_lines
    from liverseg.workbench.study.plan import make_plan, save_plan
    from liverseg.workbench.study.report import write_report
    from liverseg.workbench.study.run import make_phantoms, run_all, steps
    from liverseg.workbench.study.spec import find_study, read_study

    path = find_study(study)
    folder = StudyFolder(_out(out, path))
    content = read_study(path, bundles)
    plan = make_plan(content, folder)
    if dry_run:
        print(f"# {len(plan.runs)} trainings in {folder.path}")
        for line in length_lines(compare_lengths(plan)):
            print(f"# {line}", flush=True)
        for each in plan.runs.values():
            print(f"# {each.name}")
            for step in steps(each):
                print(step.shell_line())
        return
    console = Console()
    with folder.lock():
        lengths = compare_lengths(plan)
        save_plan(content, plan, lengths, folder)
        for line in length_lines(lengths):
            console.print(line, soft_wrap=True)
        make_phantoms(content, folder)
        failed = run_all(list(plan.runs.values()), workers, content.keep_models, console)
        page = write_report(folder)
    console.print(f"Open [bold]{page}[/bold] in a browser.")
    if failed:
        raise InputError(
            f"{len(failed)} of {len(plan.runs)} trainings failed, so their "
            "places in the tables are empty: "
            + "; ".join(f"{name}: {line}" for name, line in failed.items())
        )


@app.command()
def tables(folder: Annotated[Path, typer.Argument(help="Folder of a study, its --out.")]) -> None:
    """Write the tables, plots and index.html of a study again from what is there, and run nothing.

    Example: liverseg study tables studies_out/quick
    """
    from liverseg.workbench.study.folder import StudyFolder
    from liverseg.workbench.study.report import write_report

    print(write_report(StudyFolder(folder.resolve())))


@app.command()
def calibrate(
    study: StudyFile,
    key: Annotated[str, typer.Option(help="The config value to tune.")] = "iou_xy_alpha",
    low: Annotated[float, typer.Option(help="Smallest value tried.")] = 0.2,
    high: Annotated[float, typer.Option(help="Largest value tried.")] = 1.8,
    log: Annotated[
        bool, typer.Option("--log", help="Draw values evenly on a logarithmic scale.")
    ] = False,
    trials: Annotated[
        int, typer.Option(min=1, help="Number of values to try, with those of earlier calls.")
    ] = 20,
    data: Annotated[
        str | None, typer.Option(help="Data set of the study; by default its first.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="Network of the study; by default its first.")
    ] = None,
    loss: Annotated[str, typer.Option(help="Loss to train with.")] = "iou_xy",
    task: Annotated[str, typer.Option(help="A class of the data set, or all of them.")] = "all",
    out: Out = None,
    workers: Workers = None,
    bundles: Bundles = Path("bundles"),
) -> None:
    """Find the value of a setting that gives the best mean validation Dice over the study's folds.

    The test section is never looked at. A second call goes on where the first one stopped.

    Examples: liverseg study calibrate quick.yaml --trials 10; liverseg study calibrate paper_a.yaml
    --key learning_rate --low 1e-4 --high 1e-2 --log --loss dice
    """
    from rich.console import Console

    from liverseg.workbench.study.calibrate import Calibration, calibrate_study
    from liverseg.workbench.study.folder import StudyFolder
    from liverseg.workbench.study.spec import find_study, read_study

    path = find_study(study)
    wanted = Calibration(key, low, high, log, trials, data, network, loss, task)
    folder = StudyFolder(_out(out, path))
    calibrate_study(read_study(path, bundles), wanted, folder, workers, Console())


def _out(out: Path | None, study: Path) -> Path:
    return (out or Path("studies_out") / study.stem).resolve()
