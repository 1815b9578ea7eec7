"""Commands that make split files: `histolake lake split units|named|organ|technology|study|leave-one-out|blocks|show`.

Each shows who is on which side before anyone trains, and with `--to` writes the JSON file that `histolake train
--split` and `histolake lake overlap` take.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from histolake.platform.commands import JsonFlag, LakeOption, VersionOption, open_version, show
from histolake.platform.errors import SplitError, UsageError

if TYPE_CHECKING:
    from histolake.platform.lake import Snapshot
    from histolake.platform.splits.split import Split

__all__ = ["read_split", "split"]

LISTED = 20  # left-out slides that are named in a table; --each names all
ToOption = Annotated[
    Path | None, typer.Option("--to", help="File to write the split to; one that holds another split is refused.")
]
EachFlag = Annotated[bool, typer.Option("--each", help="A row for each slide, with the reason, in place of the sums.")]
FractionsOption = Annotated[
    str, typer.Option("--fractions", help="Shares of the sides: train=0.8,validation=0.1,test=0.1.")
]
MaybeFractions = Annotated[
    str | None, typer.Option("--fractions", help="In place of lists, shares drawn by a hash: train=0.8,test=0.2.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Another seed draws other sides.")]
TrainList = Annotated[str | None, typer.Option("--train", help="That train, comma-separated. Default: all not listed.")]
ValidationList = Annotated[str, typer.Option("--validation", help="That validate, comma-separated.")]
TestList = Annotated[str, typer.Option("--test", help="That test, comma-separated.")]
EIGHTY = "train=0.8,validation=0.1,test=0.1"

split = typer.Typer(
    name="split",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="""Say which slides train, which choose and which test, look at the sides, and write a split file.

    Nothing leaks: slides that may be of one patient, and look-alikes, are on one side or left out and named. Slides
    that are ingested later never move one that is there. `histolake train --split FILE` takes every kind.

    Example: `histolake lake split organ --test kidney --lake /data/lake --to kidney.json`
    """,
)


@split.command("units")
def units(
    fractions: FractionsOption = EIGHTY,
    seed: SeedOption = 0,
    lake_uri: LakeOption = None,
    version: VersionOption = None,
    to: ToOption = None,
    each: EachFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Draw patients, by a hash of study, patient and seed: the default way.

    A slide without a patient may be of any patient of its study. A slide that looks like an older one takes its side,
    and its patient with it; one that would join two sides is left out.

    Example: `histolake lake split units --fractions train=0.7,test=0.3 --seed 1 --lake /data/lake --to split.json`
    """
    from histolake.platform.splits.split import Split

    _end(open_version(lake_uri, version), Split.by_unit(_fractions(fractions), seed), to, each=each, as_json=as_json)


@split.command("named")
def named(
    train: Annotated[str, typer.Option("--train", help="Slides that train, comma-separated.")],
    validation: ValidationList = "",
    test: TestList = "",
    cuts_units: Annotated[bool, typer.Option(help="The lists may cut through a patient or look-alikes.")] = False,
    lake_uri: LakeOption = None,
    version: VersionOption = None,
    to: ToOption = None,
    each: EachFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Name the slides of each side; slides on no list are left out.

    Lists that put one patient's slides, or look-alikes, on several sides are refused unless --cuts-units says that they
    may, and then every figure from them is marked.

    Example: `histolake lake split named --train her2st/C2,her2st/C3 --test her2st/A1 --lake /data/lake --to c.json`
    """
    from histolake.platform.splits.split import Split

    made = Split.named(train=_names(train), validation=_names(validation), test=_names(test), cuts_units=cuts_units)
    _end(open_version(lake_uri, version), made, to, each=each, as_json=as_json)


def _add_group(by: str, example: str) -> None:
    def command(
        test: TestList = "",
        validation: ValidationList = "",
        train: TrainList = None,
        fractions: MaybeFractions = None,
        seed: SeedOption = 0,
        lake_uri: LakeOption = None,
        version: VersionOption = None,
        to: ToOption = None,
        each: EachFlag = False,
        as_json: JsonFlag = False,
    ) -> None:
        from histolake.platform.splits.split import Split

        shares = None if fractions is None else _fractions(fractions)
        lists: dict[str, Any] = {"validation": _names(validation), "test": _names(test)}
        made = Split.by_group(by, train=_names(train) if train else None, fractions=shares, seed=seed, **lists)
        _end(open_version(lake_uri, version), made, to, each=each, as_json=as_json)

    command.__doc__ = f"""Put all slides of one {by} on one side, by lists or by a hash of its name.

    A slide whose {by} is not known is left out, as is one of a patient (or like a section) that an older slide put on
    another side: no {by}, no patient and no look-alike is on two sides.

    Example: `histolake lake split {by} --test {example} --lake /data/lake --to held-out.json`
    """
    split.command(by)(command)


for _by, _example in (("organ", "kidney"), ("technology", "'Visium HD'"), ("study", "GSE144240")):
    _add_group(_by, _example)


@split.command("leave-one-out")
def leave_one_out(
    by: Annotated[str, typer.Option("--by", help="What is left out: patient, organ, technology or study.")] = "patient",
    fold: Annotated[int | None, typer.Option("--fold", "-k", help="Only this one, counted from 1.")] = None,
    lake_uri: LakeOption = None,
    version: VersionOption = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder for the files, one a fold; with -k a file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a series of splits: in each, one patient (or organ, technology, study) tests and the others train.

    Slides that may share a patient or a section with those that test are on no list. The lists are of one version of
    the lake; slides that are ingested later are on none.

    Example: `histolake lake split leave-one-out --by organ --lake /data/lake --to folds`
    """
    from histolake.platform.splits.split import Split

    snapshot = open_version(lake_uri, version)
    made = Split.leave_one_out(snapshot.slides(), by)
    if fold is not None:
        if not 1 <= fold <= len(made):
            raise UsageError(f"There is no fold {fold}; leaving out one {by} makes 1 to {len(made)}.")
        _end(snapshot, made[fold - 1], to, each=False, as_json=as_json)
        return
    pairs = dict(zip(*(snapshot.slides()[name].to_pylist() for name in ("slide_id", "n_pairs")), strict=True))
    rows = []
    for number, one in enumerate(made, 1):
        file = to / f"{number:03d}-{re.sub(r'[^A-Za-z0-9.-]+', '-', one.name)}.json" if to else None
        if file is not None:
            _write(file, one)
        listed = {side: len(names) for side, names in one.lists.items()}
        rows.append(
            {
                "fold": number,
                "name": one.name,
                "test_slides": listed["test"],
                "test_pairs": sum(pairs[slide_id] or 0 for slide_id in one.lists["test"]),
                "train_slides": listed["train"],
                "train_pairs": sum(pairs[slide_id] or 0 for slide_id in one.lists["train"]),
                "left_out": len(pairs) - listed["test"] - listed["train"],
                "file": None if file is None else str(file),
            }
        )
    show(rows, list(rows[0]), as_json=as_json, empty="")


@split.command("blocks")
def blocks(
    block_um: Annotated[float, typer.Option("--block-um", help="Width of a block, micrometres.")] = 2000.0,
    gap_um: Annotated[
        float | None,
        typer.Option("--gap-um", help="Width of the band between sides, micrometres. Default: a niche of the slide."),
    ] = None,
    fractions: FractionsOption = EIGHTY,
    seed: SeedOption = 0,
    lake_uri: LakeOption = None,
    version: VersionOption = None,
    to: ToOption = None,
    each: EachFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Cut every slide into square blocks of tissue, each on a side, with a band between sides left out.

    With a band as wide as a niche (the default) no two patches of different sides show the same tissue. But the same
    sections train and test: every figure is marked so. A section that looks like an older one is left out.

    Example: `histolake lake split blocks --block-um 1500 --lake /data/lake --to blocks.json`
    """
    from histolake.platform.splits.split import Split

    made = Split.spatial_blocks(_fractions(fractions), seed, block_um=block_um, gap_um=gap_um)
    _end(open_version(lake_uri, version), made, to, each=each, as_json=as_json)


@split.command("show")
def show_split(
    file: Annotated[Path, typer.Argument(help="A split file.", exists=True, dir_okay=False)],
    lake_uri: LakeOption = None,
    version: VersionOption = None,
    each: EachFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a split file does to a version of a lake: the sides, and what is left out and why.

    Example: `histolake lake split show split.json --each --lake /data/lake`
    """
    _end(open_version(lake_uri, version), read_split(file), None, each=each, as_json=as_json)


def read_split(file: Path) -> Split:
    """The split in a JSON file; raises `SplitError`."""
    from histolake.platform.splits.split import Split

    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SplitError(f"There is no split file {file}; `histolake lake split` makes one.") from error
    except ValueError as error:
        raise SplitError(f"{file} holds no JSON: {error}.") from error
    if not isinstance(held, dict):
        raise SplitError(f"{file} holds no split; `histolake lake split` makes one.")
    return Split.from_dict(held)


def _end(snapshot: Snapshot, made: Split, to: Path | None, *, each: bool, as_json: bool) -> None:
    """Write a split that can be, and show what it does to a version."""
    from rich.console import Console
    from rich.progress import track

    from histolake.platform.splits.table import side_table

    def watch(items: Iterable[Any], total: int) -> Iterable[Any]:
        return track(items, "places of spots", total=total, console=Console(stderr=True), transient=True)

    with snapshot.reading("split"):
        found = side_table(snapshot, made, watch)
    if to is not None:
        _write(to, made)
    columns = ["slide_id", "side", "pairs", "study", "patient", "organ", "technology", "why"]
    if each:
        show([{k: row[k] for k in columns} for row in found.slides], columns, as_json=as_json, empty="No slides.")
    else:
        sides = ["side", "slides", "pairs", "units", "organs", "why"]
        show(found.sides, sides, as_json=as_json, empty=f"Version {snapshot.version} has no slides.")
        out = [row for row in found.slides if row["rule"] not in ("", "unlisted", "band")]
        for row in out[:LISTED]:
            typer.echo(f"left out: {row['slide_id']} {row['why']}", err=True)
        if len(out) > LISTED:
            typer.echo(f"and {len(out) - LISTED} more; --each lists all", err=True)
    for sentence in found.said:
        typer.echo(sentence, err=True)
    if to is not None:
        typer.echo(f"written to {to}; lake version {snapshot.version}", err=True)


def _write(file: Path, made: Split) -> None:
    text = json.dumps(made.to_dict(), indent=1) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError as error:
        if file.read_text(encoding="utf-8") != text:
            raise UsageError(
                f"{file} is there and holds another split, which a model may name; write to another file."
            ) from error


def _names(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _fractions(text: str) -> dict[str, float]:
    found = {}
    for part in _names(text):
        side, _, share = part.partition("=")
        try:
            found[side.strip()] = float(share)
        except ValueError as error:
            raise UsageError(f"--fractions has {part!r}; write SIDE=SHARE, such as train=0.8,test=0.2.") from error
    return found
