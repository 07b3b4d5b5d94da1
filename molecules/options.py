"""Options of the molecule commands, as they appear on the command line and in `config.json`.

No torch here: `polydiff train molecules --help` reads this module alone. Names such as `--start harmonic` are turned
into objects by the commands, nowhere deeper.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from ..core.config import Invocation, Range
from ..core.names import GridName, ParametrisationName, SamplerName, ScheduleName, WeightName
from ..core.options import TrainingOptions
from .checks import check_sample, check_train
from .generation_options import AtomTypes, Drawing

__all__ = [
    "Calibrate",
    "Demo",
    "Evaluate",
    "LevelName",
    "Network",
    "ObjectiveName",
    "Sample",
    "StartName",
    "TaskName",
    "Train",
]

Count = Annotated[int, Range(1, 10**9)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Steps = Annotated[int, Range(1, 100_000)]
Scale = Annotated[float, Range(1e-4, 100.0)]
Pairs = Annotated[int, Range(1, 10**9)]

LevelName: TypeAlias = Literal["B3LYP", "MMFF94", "own"]
"""Where the geometries come from: minima of density functional theory, of a force field, or your own files."""
StartName: TypeAlias = Literal["draft", "harmonic", "centred"]
"""What is diffused: the displacement from an ETKDG draft; or the positions, from one of two laws of noise."""
TaskName: TypeAlias = Literal["conformers", "molecules"]
"""Geometries of given molecules; or whole molecules, atoms and geometry."""
ObjectiveName: TypeAlias = Literal["denoising", "aligned", "aligned-target", "chain-rule"]


@dataclass(frozen=True)
class Network:
    """The denoising network."""

    kind: Literal["equivariant", "dual"] = "equivariant"
    """Architecture: equivariant, told of chirality; or GeoDiff's two encoders."""
    width: Annotated[int, Range(8, 4096)] = 64
    """Features of an atom, a multiple of 8."""
    vectors: Annotated[int, Range(8, 4096)] | None = None
    """Vectors of an atom, a multiple of 8; None for 32. The dual encoder has none."""
    blocks: Annotated[int, Range(1, 64)] | None = None
    """Rounds of messages, of the dual encoder's global branch; None for 4, and for 5 of whole molecules."""


@dataclass(frozen=True)
class Train:
    """Train a diffusion model of conformers, or of whole molecules (--task molecules).

    Writes the configuration, checkpoints, logs for TensorBoard and the finished model into the folder --out. On several
    devices: torchrun --nproc-per-node N -m polydiff.molecules.train, with the same options.
    """

    task: TaskName = "conformers"
    """What is learnt: conformers of given molecules; or molecules themselves, positions and types of atoms at once.
    Options of the other task are refused."""
    data: tuple[str, ...] = ("small",)
    """Training molecules by name: small (no download), mini-qm9, qm9, esol, freesolv; or files of SMILES or SDF. One or
    several; one for whole molecules."""
    data_root: Path | None = None
    """Where the named data sets lie or are downloaded to [POLYDIFF_DATA, else ~/.cache/polydiff]."""
    count: Count | None = None
    """Molecules to train on of each of these; None for all."""
    levels: tuple[LevelName, ...] | None = None
    """References to learn, as far as the data have them; the model is told which one it is shown. None for what the
    data have: B3LYP of qm9, MMFF94 of SMILES, own of an SDF, whose conformers otherwise count as the first named."""
    out: Path = Path("runs/molecules")
    """Folder of the run."""
    start: StartName = "draft"
    """From what a conformer grows: an ETKDG draft that is refined, or noise, harmonic along the bonds or not."""
    scale: Scale | None = None
    """Size of the noise in Angstrom; None for 0.25 around drafts and 1 from noise."""
    drafts: Annotated[int, Range(1, 1000)] = 4
    """Drafts that are made of every molecule."""
    network: Network = field(default_factory=Network)
    schedule: ScheduleName | None = None
    """Noise schedule of positions; None for rectified-flow, and for cosine of whole molecules."""
    parametrisation: ParametrisationName | None = None
    """What the network predicts of positions; None for flow, and for v of whole molecules."""
    weighting: WeightName | None = None
    """Which error the loss leaves unweighted: the velocity's (flow), the noise's (simple), the data's (plain), ...;
    None for flow, and for velocity of whole molecules."""
    objective: ObjectiveName = "denoising"
    """denoising has a likelihood; aligned turns the noise onto the data first; aligned-target and chain-rule are
    GeoDiff's two. These three are no densities."""
    data_seed: Seed = 0
    """Decides the drafts, and which molecules --count takes."""
    types: AtomTypes = field(default_factory=AtomTypes)
    training: TrainingOptions = field(
        default_factory=lambda: TrainingOptions(batch_size=64, learning_rate=1e-3, decay_to=0.05)
    )
    """The training loop."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file, such as a run's config.json; flags given beside it win."""
    resume: Annotated[bool, Invocation()] = False
    """Go on from the newest valid checkpoint in --out, with the options kept there."""

    def check_at_once(self) -> None:
        """See `checks.check_train`."""
        check_train(self)


@dataclass(frozen=True)
class Sample:
    """Conformers of molecules: SMILES in, SDF out. A model of whole molecules (--task molecules) draws --count of them.

    Every row of the input gets a status in a table beside the SDF (OUT.report.csv); a bad row never stops the others.
    Kill it at any time: the same command with --resume goes on, and the files come out as if nothing had happened.
    """

    input: tyro.conf.Positional[Path | None] = None
    """A file of SMILES, one a line with an optional id behind it; or .csv with a column smiles and maybe one id; .gz
    too. Of equal ids the second becomes ID-2."""
    smiles: tuple[str, ...] = ()
    """SMILES instead of a file."""
    smiles_column: str | None = None
    """Column of a table that has the SMILES; None for smiles, canonical_smiles or smi."""
    id_column: str | None = None
    """Column of a table that has the ids; None for id, name, title, mol_id, molecule_id or identifier."""
    model: str = "qm9"
    """A model that ships with polydiff by name, a folder with a model or a run, or a Hugging Face repository."""
    num_conformers: Annotated[int, Range(1, 10_000)] = 10
    """Conformers of each molecule."""
    level: LevelName | None = None
    """Whose geometries: B3LYP or MMFF94; None for B3LYP where the model knows all elements by it."""
    steps: Steps | None = None
    """Steps of the sampler; None for the model's calibrated solver, else 10; 250 for whole molecules."""
    sampler: SamplerName | None = None
    """Algorithm; None for the model's calibrated solver of so many steps where it has one, else ancestral."""
    grid: GridName = "uniform"
    """How the steps are spaced in time; a calibrated solver has its own grid."""
    relax: bool = False
    """Relax with MMFF94 afterwards."""
    energies: bool = True
    """MMFF94 energies; they rank the conformers of a molecule."""
    keep_duplicates: bool = True
    """Keep conformers that are the same as another one."""
    energy_window: Annotated[float, Range(0, 1e6)] | None = None
    """kcal/mol of MMFF94: conformers further above the best one are left out; None keeps all. Those more than 50 above
    are counted in the table."""
    threshold: Annotated[float, Range(0, 100)] = 0.1
    """Angstrom, symmetric RMSD without hydrogens on carbon: below it two conformers are the same."""
    max_atoms: Annotated[int, Range(1, 100_000)] = 250
    """Molecules of more atoms, hydrogens counted, are too-large."""
    timeout: Annotated[float, Range(0.1, 1e6)] = 60.0
    """Seconds for the drafts of one molecule."""
    rounds: Annotated[int, Range(1, 100)] = 4
    """How often conformers of the wrong stereochemistry are drawn, in all."""
    pairs: Pairs = 150_000
    """Pairs of atoms that pass through the network at once, which bounds its memory."""
    chunk: Annotated[int, Range(1, 10**6)] = 16
    """Rows that are worked on together and kept together: an interruption loses no more."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the network in bfloat16 autocast."""
    processes: Annotated[int, Range(1, 1024)] = 1
    """Processes for the chemistry: drafts, force fields, stereochemistry. The network runs in one beside them."""
    progress: bool = True
    """Show a progress bar."""
    seed: Seed = 0
    """Conformer k of a molecule depends on this seed, the molecule and k alone; whole molecule k on the seed and k."""
    drawing: Drawing = field(default_factory=Drawing)
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("runs/conformers.sdf")
    """File for the conformers; a name that ends in .gz is compressed."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file; flags given beside it win."""
    resume: Annotated[bool, Invocation()] = False
    """Go on where the same command was stopped; while nothing was kept yet, --chunk may change."""

    def check_at_once(self) -> None:
        """See `checks.check_sample`."""
        check_sample(self)


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained model on molecules it has not seen; prints a table and writes it with its options into --out.

    Each figure stands beside that of ETKDGv3 and of ETKDGv3 with MMFF94; for whole molecules, beside that of held-out
    ones.
    """

    model: str = "qm9"
    """A model that ships with polydiff by name, a folder with a model or a run, or a Hugging Face repository."""
    data: str | None = None
    """The data set: a name, or a path as for train; None for the run's own."""
    data_root: Path | None = None
    """Where the named data sets lie or are downloaded to [POLYDIFF_DATA, else ~/.cache/polydiff]."""
    split: Literal["valid", "test"] = "test"
    """The held-out part."""
    protocol: Literal["P1", "P2"] = "P1"
    """Rules of coverage: GeoDiff's (P1, distances up to the threshold count) or GeoMol's (P2, those below it). Both
    look at twice as many conformers as there are references. Their figures are never to be mixed."""
    threshold: Annotated[float, Range(0, 100)] | None = None
    """Angstrom; None for the protocol's own on QM9, 0.5."""
    count: Annotated[int, Range(1, 10**7)] = 100
    """Molecules; of whole ones so many are drawn, and as many held-out ones measured."""
    num_conformers: Annotated[int, Range(1, 10_000)] | None = 10
    """Conformers of each, if the protocol looks at no more; None for as many as it looks at."""
    level: LevelName | None = None
    """The reference; None for the data's own."""
    steps: Steps | None = None
    """Steps of the sampler; None for the model's calibrated solver, else 10; 250 for whole molecules."""
    sampler: SamplerName | None = None
    """Algorithm; None for the model's calibrated solver of so many steps where it has one, else ancestral."""
    grid: GridName = "uniform"
    """How the steps are spaced in time; a calibrated solver has its own grid."""
    relax: bool = False
    """Measure the model's conformers relaxed with MMFF94 as well."""
    posebusters: Annotated[int, Range(0, 10**6)] = 100
    """Conformers of each method that PoseBusters checks, a third of a second each; 0 for none."""
    pairs: Pairs = 150_000
    """Pairs of atoms that pass through the network at once, which bounds its memory."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the network in bfloat16 autocast."""
    processes: Annotated[int, Range(1, 1024)] = 1
    """Processes for the chemistry."""
    seed: Seed = 0
    """Decides every random choice."""
    out: Path = Path("runs/evaluation")
    """Folder for the results."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file, such as a run's config.json; flags given beside it win."""


@dataclass(frozen=True)
class Calibrate:
    """Fit solvers to a trained model, for few network calls, and keep them with it.

    `sample` and `evaluate` use them from then on when --steps is one of --calls. They are fitted to the model's own
    flow, on molecules of its training set.
    """

    model: Path = Path("runs/molecules")
    """A folder with a model or a finished run; the solvers are written into it."""
    input: Path | None = None
    """A file of SMILES as for sample; None for the molecules that come with polydiff."""
    calls: tuple[Annotated[int, Range(1, 200)], ...] = (5, 10)
    """Network calls, a solver for each."""
    count: Annotated[int, Range(8, 10**6)] = 256
    """Conformers to fit; half as many again to choose by."""
    level: LevelName | None = None
    """The reference; None as for sample."""
    iterations: Annotated[int, Range(0, 1000)] = 15
    """Of Gauss-Newton; 0 chooses the best classical solver."""
    fine: Annotated[int, Range(10, 100_000)] = 50
    """Steps of the fine solution, four network calls each."""
    pairs: Pairs = 50_000
    """Pairs of atoms that pass through the network at once, which bounds its memory."""
    seed: Seed = 0
    """Decides the drafts and the noise."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file, such as a run's config.json; flags given beside it win."""


@dataclass(frozen=True)
class Demo:
    """Train a small model on molecules that come with polydiff, draw conformers, measure them, and show all on a page.

    Takes less than a minute on two cores and needs no download.
    """

    out: Path = Path("runs/demo-molecules")
    """Folder for the page and the run behind it."""
    quick: bool = False
    """A few steps only: the page comes out in seconds."""
    seed: Seed = 0
    """Decides every random choice."""
